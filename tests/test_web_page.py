import base64
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from browser import chromium, posted_by
from cli_helpers import run, tree
from helpers import assert_varies, give_random_weights
from PIL import Image

import kerasseg
from kerasseg.cli import web_page
from kerasseg.cli.demo import DEMO_NETWORK, drawings
from kerasseg.cli.vendoring import Package, check_integrity, fetch, runtime_packages
from kerasseg.errors import KerassegError
from kerasseg.export import Target, export_model
from kerasseg.layers import AlignedResizeLike, Conv2D, Preprocessing
from kerasseg.runtimes import open_file

SIZE = (48, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Networks of random weights as files: two formats, a page of each, and pictures."""
    root = tmp_path_factory.mktemp("page")
    model = network()
    for name, target in {
        "lite.tflite": Target(input_size=SIZE),
        "coarse.tflite": Target(input_size=SIZE, result="coarse_labels"),
        "any.onnx": Target(format="onnx"),
    }.items():
        export_model(model, root / "files" / Path(name).stem / name, target, measure_latency=False)
    model.save(root / "model.keras")
    pictures = drawings(2, SIZE) + drawings(1, (75, 130)) + drawings(1, (21, 100))
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"{index}.png")
    return root


def network():
    """What a page has to cope with: stride, dilation, a resize, no class that wins everywhere."""
    image = keras.Input((None, None, 3), name="image")
    x = Preprocessing.of("torch")(image)
    x = Conv2D(8, 5, strides=4, padding="same", activation="relu", name="first")(x)
    x = Conv2D(8, 3, padding="same", dilation_rate=2, activation="relu", name="second")(x)
    x = AlignedResizeLike(name="logits")([Conv2D(6, 1, name="score")(x), image])
    return give_random_weights(keras.Model(image, x, name="small"), seed=3)


@pytest.fixture(scope="module")
def pages(place):
    """The pages of the shipped network and of an ONNX file, and further files beside them; skips where npm gives no runtimes."""
    chromium()
    if not shutil.which("npm"):
        pytest.skip("no npm here: no runtime for the browser")
    packages, site = place / "packages", place / "site"
    packages.mkdir()
    try:
        for package in (*runtime_packages("tflite"), *runtime_packages("onnx")):
            fetch(package, packages)
    except KerassegError as error:
        pytest.skip(f"no runtime for the browser: {error}")
    web_page.build_page(DEMO_NETWORK, site / "demo", packages=packages)
    web_page.build_page(place / "files/any/any.onnx", site / "onnx", packages=packages)
    for name in ("lite", "coarse"):
        shutil.copytree(place / "files" / name, site / name)
    for picture in place.glob("*.png"):
        shutil.copy(picture, site)
    return site


# What is labelled in the browser: page whose script does it, description, pictures.
JOBS = {
    "lite": ("demo", "lite/lite.json", ("0.png", "1.png", "2.png", "3.png")),
    "onnx": ("onnx", "onnx/network.json", ("0.png", "1.png")),
    "coarse": ("demo", "coarse/coarse.json", ("0.png",)),
    "demo": ("demo", "demo/network.json", ("drawing0.png", "drawing1.png")),
}
LABELLING = """
const found = {};
for (const [job, [page, file, names]] of Object.entries(%s)) {
  const {loadNetwork, segment} = await import(`/${page}/segment.js`);
  const network = await loadNetwork(`/${file}`);
  for (const name of names) {
    const image = new Image();
    image.src = name;
    await image.decode();
    const {labels, height, width, shares} = await segment(network, image);
    const sum = shares.reduce((total, share) => total + share, 0);
    found[`${job} ${name}`] = {labels: btoa(String.fromCharCode(...labels)), height, width, sum, share: shares[labels[0]]};
  }
}
await post(found);
"""


@pytest.fixture(scope="module")
def labels(pages):
    """Job and picture → labels in the browser, at the picture's own size."""
    for index, picture in enumerate(drawings(2)):
        Image.fromarray(picture).save(pages / f"drawing{index}.png")
    maps = {}
    for name, each in posted_by(pages, LABELLING % json.dumps(JOBS)).items():
        maps[name] = np.frombuffer(base64.b64decode(each["labels"]), np.uint8).reshape(each["height"], each["width"])
        assert each["sum"] == pytest.approx(1) and each["share"] == pytest.approx((maps[name] == maps[name][0, 0]).mean())
    return maps


def agreement(received, expected) -> float:
    assert received.shape == expected.shape and len(np.unique(expected)) > 1
    return float((received == expected).mean())


# In the browser


@pytest.mark.parametrize("job", ["lite", "onnx"])
def test_labels_are_those_of_keras(place, labels, job):
    model = kerasseg.load_model(place / "model.keras")
    pictures = np.stack(drawings(2, SIZE)).astype("float32")
    scores = np.array(model(pictures))
    assert_varies(scores)
    for index, expected in enumerate(scores.argmax(-1)):
        assert agreement(labels[f"{job} {index}.png"], expected) >= 0.999


@pytest.mark.parametrize("name", ["2.png", "3.png"])
def test_pictures_of_other_sizes_are_fitted_as_in_evaluation(place, labels, name):
    expected = kerasseg.predict(kerasseg.load_model(place / "files/lite/lite.tflite"), place / name)
    assert agreement(labels[f"lite {name}"], expected) >= 0.998


def test_coarse_labels_lie_where_the_cells_do(place, labels):
    exported = open_file(place / "files/coarse/coarse.tflite")
    cells = exported.description.outputs["labels"]["cells"]
    coarse = exported.run(drawings(1, SIZE)[0][np.newaxis])["labels"][0]
    rows, columns = (
        np.clip(np.round((np.arange(side) - cells[axis]["shift"]) / cells[axis]["scale"]), 0, count - 1).astype(int)
        for axis, side, count in (("rows", SIZE[0], coarse.shape[0]), ("columns", SIZE[1], coarse.shape[1]))
    )
    assert coarse.shape == (12, 16)
    # Of two cells that are equally near, either may be called the nearest.
    assert agreement(labels["coarse 0.png"], coarse[rows[:, None], columns]) >= 0.95


def test_the_quantised_network_gives_what_it_gives_outside(labels):
    for index, picture in enumerate(drawings(2)):
        (scores,) = open_file(DEMO_NETWORK).run(picture[np.newaxis]).values()
        assert agreement(labels[f"demo drawing{index}.png"], scores[0].argmax(-1)) >= 0.999


PAGE = """
const frame = document.createElement('iframe');
frame.style = 'width: 360px; height: 800px; border: 0';
frame.src = '/demo/index.html';
document.body.append(frame);
const $ = (id) => frame.contentDocument.getElementById(id);
const rows = () => Array.from($('legend')?.querySelectorAll('tbody tr') ?? [], (row) => row.textContent);
const until = async (what) => { while (!what()) await new Promise((resolve) => setTimeout(resolve, 50)); };
const choose = async (content, name, type) => {
  const files = new DataTransfer();
  files.items.add(new File([content], name, {type}));
  $('file').files = files.files;
  $('file').dispatchEvent(new Event('change'));
};
await until(() => $('status')?.textContent.includes('Drawing 1') && rows().length);
const first = {rows: rows(), status: $('status').textContent, label: $('photo').getAttribute('aria-label')};
const narrow = frame.contentDocument.scrollingElement.scrollWidth;
const picture = await (await fetch('/2.png')).blob();
await choose(picture, 'mine.png', 'image/png');
await until(() => $('status').textContent.startsWith('mine.png: ') && !$('status').textContent.includes('computing'));
const {height, width} = $('overlay');
const colors = $('overlay').getContext('2d').getImageData(0, 0, width, height).data;
const {loadNetwork, segment} = await import('/demo/segment.js');
const bitmap = await createImageBitmap(picture);
const network = await loadNetwork('/demo/network.json');
const {labels} = await segment(network, bitmap);
const {palette} = await (await fetch('/demo/network.json')).json();
const wrong = Array.from(labels).filter((label, at) => palette[label].some((value, channel) => colors[4 * at + channel] !== value));
const boxes = Array.from($('legend').querySelectorAll('input'));
const ticked = boxes.map(({checked}) => checked);
for (const each of boxes) if (!each.checked) each.click();
const [box] = boxes;
box.click();
const {data} = $('overlay').getContext('2d').getImageData(0, 0, width, height);
const unpainted = data.filter((value, at) => at % 4 === 3 && value === 0).length / labels.length;
const share = parseFloat(rows()[0].match(/[\\d.]+ %/)[0]) / 100;
box.click();
$('opacity').value = 20;
$('opacity').dispatchEvent(new Event('input'));
const opacity = $('overlay').style.opacity;
await choose('no picture', 'broken.jpg', 'image/jpeg');
await until(() => !$('error').hidden);
const broken = $('error').textContent;
await choose('text', 'notes.txt', 'text/plain');
await until(() => $('error').textContent.startsWith('notes'));
const text = $('error').textContent;
const loaded = frame.contentWindow.performance.getEntriesByType('resource').map(({name}) => new URL(name));
const outside = loaded.filter(({origin, protocol}) => origin !== location.origin && protocol !== 'blob:' && protocol !== 'data:');
await choose(picture, 'outrun.png', 'image/png');
await choose('text', 'notes.txt', 'text/plain');
const left = $('status').textContent;
await choose('no picture', 'broken.jpg', 'image/jpeg');
const clear = new OffscreenCanvas(20, 10);
clear.getContext('2d');
await choose(await clear.convertToBlob(), 'clear.png', 'image/png');
await until(() => $('status').textContent.startsWith('clear.png: ') && !$('status').textContent.includes('computing'));
const late = $('error').hidden;
const white = $('photo').getContext('2d').getImageData(0, 0, 20, 10).data.every((value) => value === 255);
let seen;
const run = (values, shape) => network.run((seen = values), shape);
await segment({...network, run}, await createImageBitmap(clear));
const given = seen.every((value) => Math.abs(value - 255) < 1e-3);
await post({left, late, white, given, first, narrow, ticked, unpainted, share, height, width, wrong: wrong.length, opacity, broken,
            text, outside: outside.map(String), loaded: loaded.length});
"""


def test_the_page_as_a_visitor_has_it(pages):
    found = posted_by(pages, PAGE)
    assert len(found["first"]["rows"]) > 2 and all(row.endswith(" %") for row in found["first"]["rows"])
    assert "ms in the network" in found["first"]["status"] and found["first"]["label"].startswith("Drawing 1; ")
    assert found["narrow"] <= 360
    # Shown at its own size, in the classes' colours.
    assert (found["height"], found["width"], found["wrong"]) == (75, 130, 0)
    # The background alone is not painted, until asked for.
    assert found["ticked"] == [False] + [True] * (len(found["ticked"]) - 1)
    assert found["opacity"] == "0.2" and found["unpainted"] == pytest.approx(found["share"], abs=1e-3) != 0
    assert "broken.jpg cannot be read as a picture" in found["broken"] and "notes.txt is no picture" in found["text"]
    # What was outrun by another request leaves nothing behind, neither a status nor an error.
    assert found["left"] == "" and found["late"]
    # What is transparent is white, to the eye and to the network.
    assert found["white"] and found["given"]
    assert found["loaded"] > 8 and found["outside"] == []


def test_what_is_wrong_with_a_network_is_said(pages):
    broken = pages / "broken"
    shutil.copytree(pages / "lite", broken)
    content = bytearray((broken / "lite.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "lite.tflite").write_bytes(content)
    script = """
    const {loadNetwork} = await import('/demo/segment.js');
    const said = [];
    for (const url of ['/broken/lite.json', '/nothing.json']) await loadNetwork(url).catch((error) => said.push(error.message));
    await post(said);"""
    damaged, missing = posted_by(pages, script)
    assert "lite.tflite is damaged" in damaged and "the server answers 404" in missing


# Building


def test_what_a_browser_cannot_run_is_refused(place, tmp_path, capsys):
    six = keras.Input((None, None, 6), name="image")
    wide = give_random_weights(keras.Model(six, Conv2D(3, 3, padding="same", name="score")(six), name="wide"))
    export_model(wide, tmp_path / "six.tflite", Target(input_size=(8, 8)), measure_latency=False)
    (tmp_path / "bare.tflite").write_bytes((place / "files/lite/lite.tflite").read_bytes())
    shutil.copytree(place / "files/lite", tmp_path / "int8")
    description = json.loads((tmp_path / "int8/lite.json").read_text())
    description["outputs"]["logits"]["type"] = "int8"
    (tmp_path / "int8/lite.json").write_text(json.dumps(description))
    before = tree(tmp_path)
    for name, said in {
        "six.tflite": "6 channels",
        "bare.tflite": "has no bare.json beside it",
        "int8/lite.tflite": "--quantize int8-float-io or --result labels",
        "nothing.tflite": "no exported file",
    }.items():
        assert run(web_page, tmp_path / name, "--out", tmp_path / "page") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mine.txt").write_text("dear")
    for folder, name in (("own", "segment.js"), ("own", "my_app.html"), ("photographs", "samples")):
        (tmp_path / folder / name).mkdir(parents=True)
    (tmp_path / "file").write_text("dear")
    before = tree(tmp_path)
    for folder, said in {
        "letters": "holds mine.txt, which is not of this command",
        "own": "holds my_app.html, which is not of this command",
        "photographs": "no page of this command",
        "file": "no page of this command",
    }.items():
        assert run(web_page, "--out", tmp_path / folder, "--packages", tmp_path) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.fixture
def without_runtime(monkeypatch):
    """Pages are built without their runtimes, for tests of what happens around them."""
    monkeypatch.setattr(web_page, "vendor", lambda *arguments: None)


def test_a_page_is_replaced_behind_its_link_but_not_around_oneself(tmp_path, capsys, monkeypatch, without_runtime):
    page, link = tmp_path / "page", tmp_path / "link"
    assert run(web_page, "--out", page) == 0
    (page / "samples/old.png").write_bytes(b"")
    link.symlink_to(page)
    assert run(web_page, "--out", link) == 0 and link.is_symlink() and not (page / "samples/old.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "page"]
    before = tree(tmp_path)
    for place, out in ((page, "."), (page, page), (page / "samples", "..")):
        monkeypatch.chdir(place)
        assert run(web_page, "--out", out) == 2
        assert f"--out {out} is the folder you are in" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_port_in_use_is_said(tmp_path, capsys, without_runtime):
    with web_page.make_server(tmp_path) as server:
        port = server.server_port
        assert run(web_page, "--out", tmp_path / "page", "--serve", port) == 2
    err = capsys.readouterr().err
    assert f"--serve {port}: Address already in use; the page is built" in err and err.count("\n") == 1
    assert (tmp_path / "page/index.html").is_file()
    assert run(web_page, "--out", tmp_path / "page", "--serve", 65536) == 2
    assert "1 to 65535, or 0 for any" in capsys.readouterr().err


def test_another_package_than_the_tested_one_is_refused(tmp_path, capsys):
    first = runtime_packages("tflite")[0]
    (tmp_path / first.tarball).write_bytes(b"something else")
    assert run(web_page, "--out", tmp_path / "page", "--packages", tmp_path) == 2
    assert f"is not {first.name} {first.version} as it was published" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.tarball]


def test_integrity_is_that_of_npm(tmp_path):
    """`echo -n kerasseg | openssl dgst -sha512 -binary | base64 -w0`."""
    (tmp_path / "x.tgz").write_bytes(b"kerasseg")
    stated = "sha512-R13DakybCUtEy0nI14dF4uZF5dpdYNdmViKU8x6ixEA1bEGhbFuUpQxHpbmqAYthoWfY9O6SUJGWCqgNvFjhNQ=="
    check_integrity(tmp_path / "x.tgz", Package("x", "1", stated, "MIT", {}))
    with pytest.raises(KerassegError, match="not x 1 as it was published"):
        check_integrity(tmp_path / "x.tgz", Package("x", "1", stated[:-2] + "a=", "MIT", {}))


def test_without_npm_there_is_a_way_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(web_page, "--out", tmp_path / "page") == 2
    assert "install Node.js, or pass --packages" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_needed_is_in_the_folder(pages):
    names = {path.relative_to(pages / "demo").as_posix() for path in (pages / "demo").rglob("*") if path.is_file()}
    runtime = {name for name in names if name.startswith("vendor/litert/")}
    assert names - runtime == {
        *("index.html", "page.css", "page.js", "segment.js", "page.json", "network.json", "network.tflite", "vendor/README.txt"),
        *(f"samples/{index}.png" for index in range(1, 7)),
    }
    assert {Path(name).name for name in runtime if name.endswith(".wasm")} == {
        "litert_wasm_internal.wasm",
        "litert_wasm_compat_internal.wasm",
    }
    assert "Apache License" in (pages / "demo/vendor/litert/LICENSE.txt").read_text()
    assert "Permission is hereby granted" in (pages / "onnx/vendor/onnxruntime/LICENSE.txt").read_text()
    # A network that never saw a drawing is not shown any.
    assert json.loads((pages / "onnx/page.json").read_text())["samples"] == []
