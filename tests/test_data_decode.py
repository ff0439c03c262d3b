import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from kerasseg.data import decode_image, decode_label
from kerasseg.data.records import FileDataSet, Record
from kerasseg.errors import KerassegError
from kerasseg.labels import LABELS, colorize, generic_table

TABLE = generic_table(["ground", "cat", "dog"])
LABEL = np.array([[0, 1, 2, 255], [2, 2, 0, 1], [255, 0, 0, 0]])


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def palette_image(label):
    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette([7] * 768)
    assert image.mode == "P"
    return image


MASKS = {
    "grey": lambda label: Image.fromarray(label.astype(np.uint8)),
    "grey16": lambda label: Image.fromarray(label.astype(np.uint16)),
    "grey_alpha": lambda label: Image.merge("LA", [Image.fromarray(label.astype(np.uint8)), Image.new("L", label.shape[::-1], 9)]),
    # The colours are all alike: only the indices can tell.
    "palette": palette_image,
    "rgb": lambda label: Image.fromarray(colorize(label, TABLE)),
    "rgba": lambda label: Image.fromarray(colorize(label, TABLE)).convert("RGBA"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_way_to_write_a_mask(kind, tmp_path):
    label = decode_label(save(MASKS[kind](LABEL), tmp_path / "m.png"), TABLE)
    assert label.dtype == np.int32
    assert label.tolist() == LABEL.tolist()


def test_one_bit_mask(tmp_path):
    bits = np.array([[True, False, False], [True, True, False]])
    assert decode_label(save(Image.fromarray(bits), tmp_path / "m.png"), TABLE).tolist() == [[1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("name", LABELS)
def test_colours_read_back_as_painted(name, tmp_path):
    table = LABELS[name]
    label = np.array([[*range(table.num_classes), 255]])
    path = save(Image.fromarray(colorize(label, table)), tmp_path / "m.png")
    assert decode_label(path, table).tolist() == label.tolist()


def test_file_values_become_labels(tmp_path):
    path = save(Image.fromarray(np.array([[0, 1, 150]], np.uint8)), tmp_path / "m.png")
    assert decode_label(path, LABELS["ade20k"]).tolist() == [[255, 0, 149]]
    path = save(Image.fromarray(np.array([[7, 8, 33, 0, 34 - 1, 9]], np.uint8)), tmp_path / "m.png")
    assert decode_label(path, LABELS["cityscapes"]).tolist() == [[0, 1, 18, 255, 18, 255]]
    # Colour-coded files know nothing of the numbers in index files: void is black, and so nothing else.
    path = save(Image.fromarray(np.array([[[0, 0, 0], [128, 128, 128]]], np.uint8)), tmp_path / "m.png")
    assert decode_label(path, LABELS["camvid"]).tolist() == [[255, 0]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_files_beyond_pillows_limit_are_no_bombs(suffix, tmp_path, monkeypatch):
    save(Image.fromarray(LABEL.astype(np.uint8)), tmp_path / f"m.{suffix}")
    photograph = np.repeat(LABEL.astype(np.uint8)[..., None], 3, -1)
    # More than twice the limit is an error of Pillow's, more than once a warning.
    for limit in (5, 8):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode_image(tmp_path / f"m.{suffix}").tolist() == photograph.tolist()
            assert decode_label(tmp_path / f"m.{suffix}", TABLE).tolist() == LABEL.tolist()
        assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(KerassegError, match="no such file"):
        decode_image(tmp_path / "none.png")
    assert Image.MAX_IMAGE_PIXELS == 8


def test_the_limit_is_lifted_until_the_last_thread_has_decoded(tmp_path, monkeypatch):
    path, limit = save(Image.fromarray(LABEL.astype(np.uint8)), tmp_path / "m.png"), Image.MAX_IMAGE_PIXELS
    first, second, load, seen = threading.Event(), threading.Event(), ImageFile.ImageFile.load, []

    def loaded(image):
        if threading.current_thread() is not threading.main_thread():
            first.set()
            second.wait(30)
        seen.append(Image.MAX_IMAGE_PIXELS)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    thread = threading.Thread(target=decode_image, args=(path,))
    thread.start()
    assert first.wait(30)
    decode_image(path)
    assert Image.MAX_IMAGE_PIXELS is None
    second.set()
    thread.join()
    assert len(seen) >= 2 and not any(seen) and limit == Image.MAX_IMAGE_PIXELS


def test_unknown_colour(tmp_path):
    painted = colorize(LABEL, TABLE)
    painted[1, 2] = painted[2, 0] = (1, 2, 3)
    path = save(Image.fromarray(painted), tmp_path / "strange.png")
    with pytest.raises(KerassegError) as error:
        decode_label(path, TABLE)
    message = one_line(error)
    assert all(part in message for part in ("strange.png", "(1, 2, 3)", "2 pixels", "row 1, column 2", "classes.txt"))


@pytest.mark.parametrize("dtype, value", [(np.uint8, 3), (np.uint16, 40000)])
def test_value_beyond_the_classes(dtype, value, tmp_path):
    values = LABEL.astype(dtype)
    values[2, 1:] = value
    path = save(Image.fromarray(values), tmp_path / "beyond.png")
    with pytest.raises(KerassegError) as error:
        decode_label(path, TABLE)
    message = one_line(error)
    assert all(part in message for part in ("beyond.png", f"value {value} ", "3 pixels", "row 2, column 1", "3 classes", "0 to 2"))


def test_expected_values_are_those_of_the_files(tmp_path):
    path = save(Image.fromarray(np.array([[151]], np.uint8)), tmp_path / "m.png")
    with pytest.raises(KerassegError, match="150 classes, expected 0 to 150 or 255"):
        decode_label(path, LABELS["ade20k"])


def test_masks_must_be_lossless(tmp_path):
    path = save(Image.fromarray(LABEL.astype(np.uint8)), tmp_path / "m.jpg")
    with pytest.raises(KerassegError, match="JPEG.*save masks as PNG"):
        decode_label(path, TABLE)


def test_image_modes(tmp_path):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    expected = np.stack([grey] * 3, -1).tolist()
    assert decode_image(save(Image.fromarray(grey), tmp_path / "l.png")).tolist() == expected
    # 257 * v is v in 16 bits: 0xABAB for 0xAB.
    assert decode_image(save(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "i16.png")).tolist() == expected
    rgb = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    for mode in ("RGB", "RGBA"):
        decoded = decode_image(save(Image.fromarray(rgb).convert(mode), tmp_path / "c.png"))
        assert decoded.dtype == np.uint8
        assert decoded.tolist() == rgb.tolist()
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8))
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    path = save(indexed, tmp_path / "p.png", transparency=b"\x00\xff")
    assert decode_image(path).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk_jpeg(tmp_path):
    # No ink is white, all yellow is yellow.
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), ink) for ink in (0, 0, 255, 0)])
    decoded = decode_image(save(cmyk, tmp_path / "c.jpg", quality=100))
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - (255, 255, 0)).max() < 5


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    exif = Image.Exif()
    # 6: the camera was turned, show the picture rotated by 90° clockwise.
    exif[0x0112] = 6
    decoded = decode_image(save(image, tmp_path / "e.png", exif=exif))
    assert decoded.tolist() == [[[255, 0, 0]], [[0, 255, 0]], [[0, 0, 255]]]


def test_broken_files(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:400])
    for name in ("cut.jpg", "text.jpg", "empty.png", "cut.png"):
        with pytest.raises(KerassegError) as error:
            decode_image(tmp_path / name)
        assert name in one_line(error)
    with pytest.raises(KerassegError, match=r"no such file: .*gone\.jpg"):
        decode_image(tmp_path / "gone.jpg")


def test_sizes_that_differ_name_both_files(tmp_path):
    image = save(Image.new("RGB", (6, 4)), tmp_path / "photo.png")
    mask = save(Image.new("L", (5, 4)), tmp_path / "mask.png")
    with pytest.raises(KerassegError) as error:
        FileDataSet(TABLE, [Record("a", image, mask)])[0]
    message = one_line(error)
    assert all(part in message for part in ("photo.png", "mask.png", "6×4", "5×4"))


def test_real_voc_masks_are_palette_files(data_dir):
    folder = data_dir / "voc2012_masks" / "masks"
    for name in ("2007_000033", "2007_000042"):
        with Image.open(folder / f"{name}.png") as mask:
            assert mask.mode == "P"
            indices, painted = np.array(mask), np.array(mask.convert("RGB"))
        label = decode_label(folder / f"{name}.png", LABELS["voc"])
        assert label.tolist() == indices.tolist()
        # The colours in the file are the official ones: our colour map must agree.
        assert colorize(label).tolist() == painted.tolist()
        assert 255 in label


def test_a_palette_file_that_contradicts_itself_is_refused(tmp_path):
    table = generic_table(("ground", "cat", "dog"))
    index = np.array([[0, 1], [2, 1]], np.uint8)
    sorted_palette = Image.fromarray(index)
    # An editor that put dog's colour at 1 and cat's at 2.
    sorted_palette.putpalette([channel for label in (0, 2, 1) for channel in table.palette[label]])
    sorted_palette.save(tmp_path / "sorted.png")
    with pytest.raises(KerassegError, match=r"sorted\.png is a palette file whose colours and indices .* \(3 pixels\)"):
        decode_label(tmp_path / "sorted.png", table)
    # Colours that mean nothing are not looked at.
    sorted_palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    sorted_palette.save(tmp_path / "own.png")
    np.testing.assert_array_equal(decode_label(tmp_path / "own.png", table), index)


def test_short_palettes_are_read_as_pillow_reads_them(tmp_path):
    """Only what a file holds counts, and colours beyond the end of a palette are what Pillow makes of them."""
    table = generic_table(("ground", "cat", "dog"))
    for label in ([[0, 1], [1, 0]], [[0, 1], [2, 1]], [[0, 0], [0, 255]]):
        index = np.array(label, np.uint8)
        for entries in (1, 2, 3):
            for order in ((0, 1, 2), (0, 2, 1)):
                image = Image.fromarray(index)
                image.putpalette([channel for k in order[:entries] for channel in table.palette[k]])
                image.save(tmp_path / "m.png")
                with Image.open(tmp_path / "m.png") as read:
                    # Pillow keeps indices beyond the palette as others.
                    written, painted = np.array(read).tolist(), np.array(read.convert("RGB"))
                if not set(sum(written, [])) <= {0, 1, 2, 255}:
                    continue
                # The rule, pixel by pixel: all colours are classes, and some contradict.
                meanings = {tuple(color): k for k, color in enumerate(table.palette)} | {(224, 224, 192): 255}
                said = [[meanings.get(tuple(map(int, color))) for color in row] for row in painted]
                if None not in sum(said, []) and said != written:
                    with pytest.raises(KerassegError, match="colours and indices name different classes"):
                        decode_label(tmp_path / "m.png", table)
                else:
                    assert decode_label(tmp_path / "m.png", table).tolist() == written


def test_colours_that_no_pixel_has_excuse_nothing(tmp_path):
    table = generic_table(("ground", "cat", "dog"))
    mask = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    mask.putpalette([channel for k in (0, 2, 1) for channel in table.palette[k]] + [9] * 3 * 253)
    mask.save(tmp_path / "m.png")
    with pytest.raises(KerassegError, match=r"colours and indices name different classes of 'folder' \(3 pixels\)"):
        decode_label(tmp_path / "m.png", table)
