import numpy as np
import pytest
from cli_helpers import run
from inference_helpers import image_of
from PIL import Image

from kerasseg import KerassegError
from kerasseg.cli import crf
from kerasseg.crf import PARAMETERS, dense_crf
from kerasseg.evaluation import read_annotation

RED, BLUE, BLACK = (200, 10, 20), (10, 30, 220), (0, 0, 0)


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


@pytest.mark.parity
@pytest.mark.parametrize("number", [1, 2, 3])
def test_pydensecrfs_examples_come_out_as_its_authors_have_them(data_dir, tmp_path, number, capsys):
    folder = data_dir / "densecrf_examples/pydensecrf"
    out = tmp_path / "new/clean.png"
    assert run(crf, folder / f"im{number}.png", folder / f"anno{number}.png", "--out", out) == 0
    mask, found = opened(folder / f"anno{number}.png"), opened(out)
    assert found.mode == mask.mode == "P" and found.getpalette() == mask.getpalette()
    expected = np.asarray(opened(folder / f"out{number}.png"))
    assert expected.shape[2] == 3 and not (np.asarray(found.convert("RGB")) != expected).any()
    unknown = int((np.asarray(mask.convert("RGB")) == 0).all(-1).sum())
    assert f"; {unknown} unknown pixels (index " in capsys.readouterr().out


@pytest.fixture
def photograph(tmp_path):
    """Two flat halves, and a drawing of them whose border is three columns off and whose rows 12 to 15 are unknown."""
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = (220, 60, 50), (40, 90, 200)
    Image.fromarray(image).save(tmp_path / "photo.png")
    labels = np.where(np.arange(32) < 19, 1, 2) * np.ones((24, 1), int)
    labels[12:16] = 0
    return tmp_path, labels, np.where(np.arange(32) < 16, 1, 2) * np.ones((24, 1), int)


def save(path, labels, mode):
    """Saves labels 0 = unknown, 1, 2 in a coding, and gives the function that reads it."""
    colors = np.array([BLACK, RED, BLUE], np.uint8)
    if mode in ("RGB", "RGBA"):
        picture = Image.fromarray(colors[labels])
        if mode == "RGBA":
            # What is unknown may be transparent, and is not when it has got a class.
            alpha = (np.arange(labels.size) % 255 + 1).reshape(labels.shape)
            alpha[12:16] = np.where(labels[12:16] == 0, alpha[12:16] // 2, 255)
            picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    elif mode == "P":
        picture = Image.fromarray(np.array([0, 7, 9], np.uint8)[labels])
        palette = [0] * 768
        palette[21:24], palette[27:30] = RED, BLUE
        picture.putpalette(palette)
    elif mode == "L":
        picture = Image.fromarray(np.array([255, 0, 3], np.uint8)[labels])
    else:
        picture = Image.fromarray(np.array([255, 1000, 3], np.uint16)[labels])
    picture.save(path)
    assert opened(path).mode == mode
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16"])
def test_every_coding_comes_back_as_it_was(photograph, mode, capsys):
    place, labels, clean = photograph
    mask = save(place / "mask.png", labels, mode)
    assert run(crf, place / "photo.png", mask, "--out", place / "out.png") == 0
    expected = save(place / "expected.png", clean, mode)
    found, wanted = opened(place / "out.png"), opened(expected)
    assert found.mode == wanted.mode and found.getpalette() == wanted.getpalette()
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    named = {"RGB": "colour 0,0,0", "RGBA": "colour 0,0,0", "P": "index 0"}.get(mode, "index 255")
    out = capsys.readouterr().out
    assert f"out.png: 2 classes; 60 of 640 labelled pixels changed; 128 unknown pixels ({named}) got a class" in out


def test_the_result_is_that_of_the_crf(tmp_path, capsys):
    image = image_of()
    labels = np.random.default_rng(0).integers(0, 3, (15, 20)).repeat(2, 0).repeat(2, 1)
    Image.fromarray(image).save(tmp_path / "photo.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "mask.png")
    given = (tmp_path / "photo.png", tmp_path / "mask.png", "--out", tmp_path / "out.png", "--overwrite")
    results = []
    for options, name, changes in (
        ((), "pydensecrf", {}),
        (("--crf", "deeplab_v1"), "deeplab_v1", {}),
        (("--iterations", "1", "--gt-prob", "0.99"), "pydensecrf", {"iterations": 1, "gt_prob": 0.99}),
    ):
        assert run(crf, *given, *options) == 0
        found = np.asarray(opened(tmp_path / "out.png"))
        expected = dense_crf(image, None, PARAMETERS[name], labels_unary=labels, num_classes=3, **{"gt_prob": 0.7, **changes})
        np.testing.assert_array_equal(found, expected.argmax(-1))
        results.append(found.tobytes())
        assert "unknown" not in capsys.readouterr().out
    assert len(set(results)) == 3


def test_what_is_unknown_can_be_said(photograph):
    place, labels, _ = photograph
    colors, palette, grey = (save(place / f"{mode}.png", labels, mode) for mode in ("RGB", "P", "L"))
    for path, unknown, classes in (
        (colors, "auto", [RED, BLUE]),
        (colors, "none", [BLACK, RED, BLUE]),
        (colors, RED, [BLACK, BLUE]),
        (palette, "auto", [7, 9]),
        (palette, "none", [0, 7, 9]),
        (palette, 7, [0, 9]),
        (palette, BLUE, [0, 7]),
        (grey, "auto", [0, 3]),
        (grey, 3, [0, 255]),
    ):
        found = read_annotation(path, unknown)
        codes = {tuple(np.atleast_1d(code).tolist()) for code in found.codes}
        assert codes == {tuple(np.atleast_1d(code).tolist()) for code in classes} and len(codes) == len(classes)
        assert (found.unknown is None) == (unknown == "none") == (not (found.labels < 0).any())
    # VOC's masks have black for background, and 255 for what is not labelled.
    values = np.where(labels == 0, 255, labels - 1).astype(np.uint8)
    voc = Image.fromarray(values)
    voc.putpalette([0, 0, 0, 128, 0, 0] + [224, 224, 192] * 254)
    voc.save(place / "voc.png")
    assert read_annotation(place / "voc.png").unknown == 255 and read_annotation(place / "voc.png").codes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "{place}/there.png"), "there.png is there already: name another file, or pass --overwrite"),
        (("--out", "{place}/mask.png"), "mask.png is there already"),
        (("--out", "{place}"), "expected a file that ends in .png"),
        (("--out", "{place}/out.jpg"), "expected a file that ends in .png, such as {place}/out/clean.png"),
        (("--crf", "densecrf"), "--crf 'densecrf': no such file or name; did you mean 'pydensecrf'?"),
        (("--gt-prob", "1"), "--gt-prob 1: expected a probability above 0 and below 1"),
        (("--iterations", "-1"), "--iterations -1: expected 0 or more"),
        (("--unknown", "black"), "--unknown black: expected an index such as 255, a colour such as 0,0,0, none or auto"),
        (("--unknown", "0,0,300"), "--unknown 0,0,300: expected a colour of 0 to 255"),
        (("--unknown", "7"), "unknown index 7: mask {place}/mask.png is one of colours"),
        (("--unknown", "1,2,3"), "unknown colour (1, 2, 3): mask {place}/mask.png has no such colour; expected one that occurs"),
        (("--out", "{place}/photo.png"), "photo.png is the photograph: name another file, such as {place}/photo_clean.png"),
        (("--out", "{place}/../{name}/photo.png", "--overwrite"), "photo.png is the photograph: name another file"),
        (("--gt-prob", "0.5"), "--gt-prob 0.5: mask {place}/mask.png has 2 classes, expected more than 1/2, such as 0.75: else"),
        (("--gt-prob", "0.3", "--unknown", "none"), "mask.png has 3 classes, expected more than 1/3, such as 0.67: else"),
    ],
)
def test_mistakes_are_one_line(photograph, capsys, options, message):
    place, labels, _ = photograph
    save(place / "mask.png", labels, "RGB")
    (place / "there.png").write_text("mine")
    options = [text.replace("{place}", str(place)).replace("{name}", place.name) for text in options]
    if "--out" not in options:
        options += ["--out", place / "out.png"]
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert run(crf, place / "photo.png", place / "mask.png", *options) == 2
    error = capsys.readouterr().err
    assert message.replace("{place}", str(place)) in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_masks_that_are_none_are_refused(photograph, capsys):
    place, labels, _ = photograph
    mask = save(place / "mask.png", labels, "RGB")
    opened(mask).resize((16, 12)).save(place / "small.png")
    assert run(crf, place / "photo.png", place / "small.png", "--out", place / "out.png") == 2
    assert "is 12x16, image" in capsys.readouterr().err and not (place / "out.png").exists()
    noise = np.random.default_rng(0).integers(1, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(place / "noise.png")
    Image.fromarray(noise).save(place / "noise.jpg")
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(place / "black.png")
    Image.fromarray(noise).convert("CMYK").save(place / "cmyk.tif")
    (place / "broken.png").write_bytes(mask.read_bytes()[:60])
    for name, message in (
        ("noise.png", "values: expected 1 to 256 classes, drawn without soft edges"),
        ("black.png", "holds nothing but unknown pixels: expected 1 to 256 classes"),
        ("cmyk.tif", "has mode CMYK: expected indices"),
        ("broken.png", "cannot decode mask"),
        ("absent.png", "no such mask"),
    ):
        with pytest.raises(KerassegError, match=message):
            read_annotation(place / name)
    with pytest.raises(KerassegError) as error:
        read_annotation(place / "noise.jpg")
    assert str(error.value) == f"mask {place / 'noise.jpg'} is a JPEG file, which does not keep values exactly: save it as PNG"
    with pytest.raises(KerassegError, match=r"unknown colour \(1, 2, 3\): mask .* has no such colour"):
        read_annotation(save(place / "palette.png", labels, "P"), (1, 2, 3))
    for mode in ("P", "L"):
        with pytest.raises(
            KerassegError, match="unknown index 17: mask .* has no such index; expected one that occurs, auto or none"
        ):
            read_annotation(save(place / f"{mode}.png", labels, mode), 17)


def test_what_is_transparent_is_unknown_whatever_its_colour(photograph, capsys):
    place, labels, clean = photograph
    picture = Image.fromarray(np.array([RED, RED, BLUE], np.uint8)[labels])
    picture.putalpha(Image.fromarray(np.where(labels == 0, 0, 90).astype(np.uint8)))
    picture.save(place / "mask.png")
    assert run(crf, place / "photo.png", place / "mask.png", "--out", place / "out.png") == 0
    assert "2 classes; 60 of 640 labelled pixels changed; 128 unknown pixels (transparent) got" in capsys.readouterr().out
    found = np.asarray(opened(place / "out.png"))
    np.testing.assert_array_equal(found[..., :3], np.array([BLACK, RED, BLUE], np.uint8)[clean])
    np.testing.assert_array_equal(found[..., 3], np.where(labels == 0, 255, 90))
    # Beside a colour that is unknown, and where all is to count.
    assert (read_annotation(place / "mask.png", BLUE).labels < 0).sum() == 128 + (labels == 2).sum()
    everything = read_annotation(place / "mask.png", "none")
    assert everything.unknown is None and (everything.labels >= 0).all()


def test_transparent_colours_of_a_palette_stay_so(photograph):
    place, labels, _ = photograph
    for transparency in (9, bytes([255] * 7 + [10, 255, 20])):
        opened(save(place / "mask.png", labels, "P")).save(place / "clear.png", transparency=transparency)
        assert run(crf, place / "photo.png", place / "clear.png", "--out", place / "out.png", "--overwrite") == 0
        found, before = opened(place / "out.png"), opened(place / "clear.png")
        assert found.info["transparency"] == before.info["transparency"] and found.mode == "P"
        alpha = np.asarray(found.convert("RGBA"))[..., 3]
        expected = {7: 255, 9: 0} if transparency == 9 else {7: 10, 9: 20}
        np.testing.assert_array_equal(alpha, np.vectorize(expected.get)(np.asarray(found)))


def test_of_a_single_class_any_probability_will_do(photograph):
    place, labels, _ = photograph
    mask = save(place / "mask.png", np.where(labels == 2, 0, labels), "L")
    assert run(crf, place / "photo.png", mask, "--out", place / "out.png", "--gt-prob", "0.2") == 0
    assert (np.asarray(opened(place / "out.png")) == 0).all()
