import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from cli_helpers import finish, run, start, tree, write_camvid
from fixtures.cityscapes import write_cityscapes
from fixtures.coco import write_coco
from fixtures.folder import write_folder
from fixtures.nyud import write_nyud, write_nyud_labeled
from fixtures.pictures import make_label, write_palette_mask, write_photo
from fixtures.sbd import write_sbd
from fixtures.sift_flow import TRAIN, VOID, write_sift_flow
from fixtures.voc import write_voc
from PIL import Image

from kerasseg.cli import prepare_data
from kerasseg.data import DATA_SETS, open_data
from kerasseg.data.preparation.prepared import Prepared, PreparedFiles, find_prepared
from kerasseg.data.preparation.preparing import prepare
from kerasseg.data.preparation.stored import table_from_json, table_to_json
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS


def assert_same(received, expected) -> None:
    """Demands the same examples, in the same order, under the same tables."""
    assert received.ids == expected.ids
    assert received.labels == expected.labels and received.heads == expected.heads
    assert (received.mean, received.inputs, received.channels) == (expected.mean, expected.inputs, expected.channels)
    for index in range(len(expected)):
        one, other = received[index], expected[index]
        assert one.image.dtype == other.image.dtype
        np.testing.assert_array_equal(one.image, other.image)
        if other.label is None:
            assert one.label is None and received.read_label(index) is None
        else:
            assert one.label.dtype == other.label.dtype == np.int32
            np.testing.assert_array_equal(one.label, other.label)


def voc_and_sbd(root):
    write_voc(root / "VOCdevkit")
    write_sbd(root)


LAYOUTS = {
    "camvid": ("camvid", write_camvid, {}),
    "voc": ("voc", voc_and_sbd, {}),
    "sbd": ("sbd", write_sbd, {}),
    "sift_flow": ("sift_flow", write_sift_flow, {}),
    "nyud": ("nyud", write_nyud, {}),
    "nyud_labeled": ("nyud", write_nyud_labeled, {"crop": False}),
    "coco_voc": ("coco_voc", write_coco, {"release": "2017"}),
    "cityscapes": ("cityscapes", write_cityscapes, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_as_before_from_what_was_prepared(layout, tmp_path):
    name, write, options = LAYOUTS[layout]
    write(tmp_path / "source")
    outcome = prepare(name, tmp_path / "source", tmp_path / "out", options=options)
    assert outcome.done and not outcome.broken
    prepared = outcome.header["splits"]
    assert prepared
    # Moved away: nothing may refer to where it was made, or to the source.
    plain = {split: DATA_SETS[name](tmp_path / "source", split, **options) for split in prepared}
    shutil.move(tmp_path / "out", tmp_path / "moved")
    for split, expected in plain.items():
        assert_same(open_data(name, tmp_path / "moved", split, **options), expected)
    assert not [file for file in (tmp_path / "moved").rglob("*") if file.is_symlink() or file.suffix == ".mat"]


def test_families_and_heads_are_prepared_once(tmp_path):
    write_nyud(tmp_path / "nyud")
    prepare("nyud_hha", tmp_path / "nyud")
    for name in ("nyud", "nyud_hha", "nyud_color_d", "nyud_color_hha"):
        opened = open_data(name, tmp_path / "nyud", "test")
        assert opened.prepared.data == "nyud"
        assert_same(opened, DATA_SETS[name](tmp_path / "nyud", "test"))
    write_sift_flow(tmp_path / "sift")
    prepare("sift_flow", tmp_path / "sift")
    for options in ({}, {"head": "geometric"}, {"head": "semantic"}):
        opened = open_data("sift_flow", tmp_path / "sift", "test", **options)
        assert opened.prepared is not None
        plain = DATA_SETS["sift_flow"](tmp_path / "sift", "test", **options)
        np.testing.assert_array_equal(opened[1].label, plain[1].label)


def test_counts_are_those_of_the_labels(tmp_path):
    root = write_folder(tmp_path / "data", 4)
    # A class that one image lacks, so that its frequency is that in the others; and images of two sizes.
    write_palette_mask(root / "masks" / "a0.png", make_label((70, 80), 2, 0))
    write_photo(root / "images" / "a3.jpg", (40, 50), 3)
    write_palette_mask(root / "masks" / "a3.png", make_label((40, 50), 3, 3))
    found = prepare("folder", root).header["splits"]
    data = DATA_SETS["folder"](root, "train")
    images, labels = [data[k].image for k in range(3)], [data[k].label for k in range(3)]
    head = found["train"]["heads"]["mask"]
    pixels = [sum(int((label == k).sum()) for label in labels) for k in range(3)]
    assert head["pixels"] == pixels
    assert head["in_images"] == [sum((label == k).any() for label in labels) for k in range(3)]
    assert head["ignored"] == sum(int((label == 255).sum()) for label in labels)
    assert found["train"]["images"] == 3 and found["val"]["images"] == 1
    assert found["train"]["sizes"] == {
        "smallest": [40, 50], "median": [70, 80], "largest": [70, 80], "different": 2, "common": [[70, 80, 2], [40, 50, 1]]
    }  # fmt: skip
    expected = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64).mean(0)
    np.testing.assert_allclose(found["train"]["mean"], expected, rtol=1e-13)
    frequencies = [pixels[k] / sum(label.size for label in labels if (label == k).any()) for k in range(3)]
    np.testing.assert_allclose(head["median_frequency_weights"], [np.median(frequencies) / f for f in frequencies])


def test_again_nothing_is_done(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    assert run(prepare_data, "folder", root, "--jobs", 1) == 0
    assert "prepared 6 examples" in capsys.readouterr().out
    before = tree(root)
    assert run(prepare_data, "folder", root, "--jobs", 1) == 0
    out = capsys.readouterr().out
    assert "nothing to do: all 6 entries of the lists are as they were" in out
    assert "ground" in out and "train" in out
    assert tree(root) == before


def test_changes_are_noticed(tmp_path):
    root = write_folder(tmp_path / "data")
    prepare("folder", root)
    write_photo(root / "images" / "a0.jpg", (70, 80), 99)
    with pytest.raises(KerassegError, match=r"a0\.jpg is not the file that was prepared"):
        open_data("folder", root)[0]
    outcome = prepare("folder", root)
    assert (outcome.done, outcome.changed) == (1, ["../images/a0.jpg"])
    assert_same(open_data("folder", root), DATA_SETS["folder"](root))
    (root / "train.txt").write_text("a3\n")
    outcome = prepare("folder", root)
    assert (outcome.done, sorted(outcome.gone)) == (0, ["a0", "a1", "a4"])
    assert open_data("folder", root).ids == ("a3",)
    (root / "masks" / "a3.png").unlink()
    (root / "train.txt").write_text("b2\n")
    assert prepare("folder", root).header["splits"]["train"]["images"] == 1


def test_damage_that_no_time_betrays_is_found_when_it_is_looked_for(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    prepare("folder", root)
    path = root / "images" / "a1.jpg"
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    # Neither the time nor the size has changed. Reading notices, as does the tool when it is asked to.
    assert prepare("folder", root).done == 0
    with pytest.raises(KerassegError, match=r"a1\.jpg is not the file that was prepared"):
        open_data("folder", root)[1]
    assert run(prepare_data, "folder", root, "--verify") == 2
    assert "a1.jpg has another CRC-32" in capsys.readouterr().err


def test_what_was_added_is_not_hidden_by_what_was_prepared(tmp_path):
    root = write_folder(tmp_path / "data")
    prepare("folder", root)
    assert isinstance(open_data("folder", root), PreparedFiles)
    write_photo(root / "images" / "new.jpg", (70, 80), 7)
    write_palette_mask(root / "masks" / "new.png", make_label((70, 80), 3, 7))
    with (root / "train.txt").open("a") as file:
        file.write("new\n")
    assert "new" in open_data("folder", root).ids
    assert prepare("folder", root).done == 1
    assert isinstance(open_data("folder", root), PreparedFiles) and "new" in open_data("folder", root).ids


def test_any_number_of_processes_writes_the_same(tmp_path):
    root = write_folder(tmp_path / "data", 33, size=(20, 24))
    for jobs in (1, 2):
        prepare("folder", root, tmp_path / f"by{jobs}", jobs=jobs)
    files = [sorted(path.relative_to(tmp_path / f"by{jobs}") for path in (tmp_path / f"by{jobs}").rglob("*")) for jobs in (1, 2)]
    assert files[0] == files[1] and len(files[0]) > 66
    for name in files[0]:
        if (tmp_path / "by1" / name).is_file():
            assert (tmp_path / "by1" / name).read_bytes() == (tmp_path / "by2" / name).read_bytes(), name


def test_killed_it_goes_on(tmp_path):
    """What is there before the kill stays as it is; the end is that of a run without one."""
    write_sift_flow(tmp_path / "source")
    many = tmp_path / "source" / "Images"
    collection = next(many.iterdir())
    photo = collection / f"{sorted(set(TRAIN) - {VOID})[0]}.jpg"
    for folder in ("Images", "SemanticLabels", "GeoLabels"):
        place = tmp_path / "source" / folder / collection.name
        original = photo if folder == "Images" else place / f"{photo.stem}.mat"
        for index in range(150):
            shutil.copy(original, place / f"more{index:03d}{original.suffix}")
    process = start("tools/prepare_data.py", "sift_flow", tmp_path / "source", "--out", tmp_path / "out", "--jobs", 1)
    notes, limit = tmp_path / "out" / "examples.jsonl", time.monotonic() + 60
    while (not notes.exists() or notes.read_text().count("\n") < 20) and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert find_prepared(tmp_path / "out", "sift_flow") is None
    # As a kill between the parts of a line leaves it.
    torn = notes.read_text()
    notes.write_text(torn[: len(torn) - 40] if torn.endswith("\n") else torn)
    (tmp_path / "out" / f".unfinished-{process.pid}-x.png").write_bytes(b"half")
    early = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "converted" / "mask").glob("[!.]*.png")}
    assert 10 <= len(early) < 150
    code, out, err = finish("tools/prepare_data.py", "sift_flow", tmp_path / "source", "--out", tmp_path / "out", "--jobs", 1)
    assert (code, err) == (0, "")
    done = int(out.partition("prepared ")[2].split()[0])
    assert done < 157 - len(early) + 3
    again = [path for path, stamp in early.items() if path.stat().st_mtime_ns != stamp]
    assert len(again) <= 2
    assert not list((tmp_path / "out").rglob(".unfinished*"))
    prepare("sift_flow", tmp_path / "source", tmp_path / "whole", jobs=1)
    for name in ("prepared.json", "trainval.txt", "test.txt", "checksums.txt", "examples.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_one_example_of_several_splits_is_kept_once_and_others_of_its_name_apart(tmp_path):
    voc_and_sbd(tmp_path / "source")
    header = prepare("voc", tmp_path / "source", tmp_path / "out", splits=["val"]).header
    assert list(header["splits"]) == ["val"]
    # In SBD the same photographs have other masks.
    prepare("voc", tmp_path / "source", tmp_path / "out", splits=["sbd_train", "trainval"])
    assert Prepared(tmp_path / "out").splits == ("sbd_train", "trainval", "val")
    for split in ("val", "sbd_train", "trainval"):
        assert_same(open_data("voc", tmp_path / "out", split), DATA_SETS["voc"](tmp_path / "source", split))
    photos = list((tmp_path / "out" / "original" / "image").iterdir())
    ids = {name for split in ("val", "sbd_train", "trainval") for name in open_data("voc", tmp_path / "out", split).ids}
    assert {path.stem.partition("~")[0] for path in photos} == ids


def test_examples_of_one_name_in_several_splits_keep_their_own_files(tmp_path):
    for number in range(3):
        write_photo(tmp_path / f"p{number}.jpg", (20, 24), number)
        write_palette_mask(tmp_path / f"m{number}.png", make_label((20, 24), 3, number))
    lines = [f"p{number}.jpg,m{number}.png,{split},same" for number, split in enumerate(("val", "train", "test"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    options = {"classes": ["x", "y", "z"]}
    # In this order train would take the name that val has from before.
    for splits in (["val"], ["train", "val"], ["test"]):
        prepare("csv", tmp_path / "list.csv", tmp_path / "out", splits=splits, options=options)
    for split in ("train", "val", "test"):
        expected = DATA_SETS["csv"](tmp_path / "list.csv", split, **options)
        assert_same(open_data("csv", tmp_path / "out", split, **options), expected)
    assert sorted(path.name for path in (tmp_path / "out/original/mask").iterdir()) == ["same.png", "same~2.png", "same~3.png"]


def test_out_links_and_leaves_the_source_as_it_is(tmp_path):
    root = write_folder(tmp_path / "data")
    os.chmod(root / "images" / "a0.jpg", 0o600)
    before = tree(root)
    prepare("folder", root, tmp_path / "out")
    assert tree(root) == before
    assert (root / "images" / "a0.jpg").stat().st_mode & 0o777 == 0o600
    assert os.path.samefile(root / "images" / "a0.jpg", tmp_path / "out" / "original" / "image" / "a0.jpg")


def test_from_a_place_that_only_tensorflow_reads(tmp_path):
    """Its file system in memory, as a cloud: the prepared folder alone, and beside the source."""
    gfile = pytest.importorskip("tensorflow").io.gfile
    write_sift_flow(tmp_path / "data")
    prepare("sift_flow", tmp_path / "data")
    prepare("sift_flow", tmp_path / "data", tmp_path / "out")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        target = f"ram://{tmp_path.name}/{path.relative_to(tmp_path)}"
        gfile.makedirs(target.rpartition("/")[0])
        with gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes())
    expected = DATA_SETS["sift_flow"](tmp_path / "data", "test")
    for place in ("out", "data"):
        data = open_data("sift_flow", f"ram://{tmp_path.name}/{place}", "test")
        assert data.prepared is not None and data[0].path.startswith("ram://") and ".." not in data[0].path
        assert_same(data, expected)


def test_options_belong_to_what_was_prepared(tmp_path):
    write_camvid(tmp_path / "data")
    prepare("camvid", tmp_path / "data", tmp_path / "out", options={"class_order": "dilation"})
    assert open_data("camvid", tmp_path / "out", class_order="dilation").labels == LABELS["camvid_dilation"]
    with pytest.raises(KerassegError, match=r'prepared with class_order="dilation", received class_order="segnet"'):
        open_data("camvid", tmp_path / "out")
    # Somebody may need it.
    before = tree(tmp_path / "out")
    with pytest.raises(KerassegError, match=r"""holds data set 'camvid' prepared with class_order="dilation".*by --out"""):
        prepare("camvid", tmp_path / "data", tmp_path / "out")
    assert tree(tmp_path / "out") == before
    # Beside its source, whatever was not prepared is read from there.
    prepare("camvid", tmp_path / "data", splits=["val"])
    assert open_data("camvid", tmp_path / "data", "val").prepared is not None
    assert open_data("camvid", tmp_path / "data", "train").prepared is None
    assert open_data("camvid", tmp_path / "data", "val", class_order="dilation").prepared is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("camvidd", "SRC"), "did you mean 'camvid'"),
        (("camvid",), "pass --out"),
        (("camvid", "nowhere"), "'nowhere', which is no folder"),
        (("camvid", "SRC", "--splits", "vall"), "did you mean 'val'"),
        (("camvid", "SRC", "--data-arguments", "order=dilation"), "no option 'order'"),
        (("camvid", "SRC", "--jobs", "0"), "--jobs 0: expected 1 or more"),
        (("camvid", "gs://bucket/camvid"), "prepare it on one with --out"),
        (("camvid", "SRC", "--out", "FULL"), "is not empty, and not what was prepared before"),
        (("camvid", "OUT"), "is already prepared"),
        (("features", "SRC"), "features"),
    ],
)
def test_mistakes_are_one_line(arguments, message, camvid, capsys, monkeypatch):
    monkeypatch.chdir(camvid)
    arguments = [{"SRC": "source", "OUT": "out", "FULL": "source"}.get(word, word) for word in arguments]
    before = tree(camvid)
    assert run(prepare_data, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert tree(camvid) == before


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    root = tmp_path_factory.mktemp("camvid")
    write_camvid(root / "source")
    prepare("camvid", root / "source", root / "out")
    return root


def test_damaged_folders_are_told(tmp_path):
    write_camvid(tmp_path / "source")
    out = prepare("camvid", tmp_path / "source", tmp_path / "out").folder
    with pytest.raises(KerassegError, match="is what was prepared of data set 'camvid', received 'voc': pass --data camvid"):
        open_data("voc", out)
    with pytest.raises(KerassegError, match="prepared without split 'vall': did you mean 'val'"):
        open_data("camvid", out, "vall")
    header = json.loads((out / "prepared.json").read_text())
    text = (out / "val.txt").read_text()
    (out / "val.txt").write_text(text[: len(text) // 2])
    with pytest.raises(KerassegError, match=r"val\.txt is damaged"):
        open_data("camvid", out, "val")
    for change, message in (({"format": 99}, "of format 99, expected 1"), ({"data": None}, "lacks data")):
        changed = {name: value for name, value in (header | change).items() if value is not None or name in ("heads", "inputs")}
        (out / "prepared.json").write_text(json.dumps(changed))
        with pytest.raises(KerassegError, match=message):
            open_data("camvid", out)
    (out / "prepared.json").write_text("{")
    with pytest.raises(KerassegError, match="cannot be read"):
        open_data("camvid", out)


def test_tables_come_back_from_json():
    for table in LABELS.values():
        assert table_from_json(json.loads(json.dumps(table_to_json(table)))) == table


def test_real_camvid(data_dir, tmp_path):
    """The counts kept beside the data, which are not by this library."""
    outcome = prepare("camvid", data_dir / "camvid", tmp_path / "out", splits=["val"])
    head = outcome.header["splits"]["val"]["heads"]["mask"]
    labels = [np.array(Image.open(path)) for path in sorted((data_dir / "camvid" / "masks" / "val").glob("*.png"))]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=12)
    assert head["pixels"] + [head["ignored"]] == counts.tolist()
    assert outcome.header["splits"]["val"]["images"] == 101
