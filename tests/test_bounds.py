"""Upper bounds of mean IoU by downsampling factor: Shelhamer et al. 2017, §6.3."""

import json
import math
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from cli_helpers import run

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.evaluation.analysis.bounds import (
    DEFAULT,
    FACTORS,
    PROTOCOLS,
    PUBLISHED,
    Protocol,
    default_protocol,
    distance,
    mask_folder,
    upper_bounds,
)
from kerasseg.evaluation.analysis.resampling import down_matrix, up_matrix
from kerasseg.labels import LABELS, generic_table
from kerasseg.ops import bilinear_kernel

VOID = 255


def random_mask(height, width, classes, seed=0):
    """Blobs of classes with void pixels between some of them."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (height // 3 + 1, width // 3 + 1)).repeat(3, 0).repeat(3, 1)[:height, :width].astype(np.int32)
    label[rng.random(label.shape) < 0.1] = VOID
    return label


def test_a_mask_worked_by_hand():
    label = np.array([[0, 0, 1, 1], [0, 1, 1, VOID], [0, 0, 0, 2], [0, 0, 2, 2]])
    blocks = Protocol("box", "nearest", "blocks", "renormalized")
    # Shares of 1 in the four blocks: 1/4, 3/4 (void is background), 0, 0; of 2: 0, 0, 0, 3/4.
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2]]
    np.testing.assert_array_equal(blocks.prediction(label, 2, 3), expected)
    (matrix,) = upper_bounds([label], 3, (2,), (blocks,))[0]
    np.testing.assert_array_equal(matrix, [[7, 0, 1, 0], [1, 3, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0]])
    # 7 of 7 + 1 + 1, 3 of 3 + 1, 3 of 3 + 1; with void as background 7 of 10, and 3 of 5 that are or were taken for 1.
    assert blocks.mean_iou(matrix) == pytest.approx(100 * (7 / 9 + 3 / 4 + 3 / 4) / 3)
    everything = Protocol("box", "nearest", "blocks", "renormalized", scored="all")
    assert everything.mean_iou(matrix) == pytest.approx(100 * (7 / 10 + 3 / 5 + 3 / 4) / 3)


def test_void_is_what_the_protocol_says():
    label = np.array([[1, 1, VOID, VOID], [1, VOID, VOID, VOID], [1, 1, 1, 1], [1, 1, 1, 1]])

    def found(void):
        return Protocol("box", "nearest", "blocks", "renormalized", void).prediction(label, 2, 2)[:2, ::2].tolist()

    assert found("background") == [[1, 0], [1, 0]]
    assert found("class") == [[1, 2], [1, 2]]
    # Where no class has anything it is background.
    assert found("nothing") == found("left out") == [[1, 0], [1, 0]]
    assert found("nearest") == [[1, 1], [1, 1]]
    # A pixel taken for void is wrong, and no class gains by it.
    label = np.array([[1, VOID], [VOID, VOID], [0, 0], [0, 0]])
    own = Protocol("box", "nearest", "blocks", "renormalized", "class")
    (matrix,) = upper_bounds([label], 2, (2,), (own,))[0]
    np.testing.assert_array_equal(matrix, [[4, 0, 0], [0, 0, 1], [0, 0, 3]])
    assert own.mean_iou(matrix) == pytest.approx(50)


def convolved(label, factor, classes):
    """The default protocol by TensorFlow's convolution, and its transpose, with FCN's kernel."""
    height, width = label.shape
    maps = np.stack([np.where(label == VOID, 0, label) == number for number in range(classes)], -1)[None].astype(np.float32)
    down = np.zeros((2 * factor, 2 * factor, classes, classes), np.float32)
    for number in range(classes):
        down[..., number, number] = bilinear_kernel(2 * factor)
    # Half a block before the first cell and enough behind the last one.
    half = factor // 2
    padding = [(0, 0), *((half, half + -side % factor) for side in (height, width)), (0, 0)]
    cells, inside = (tf.nn.conv2d(np.pad(x, padding), down, factor, "VALID") for x in (maps, np.ones_like(maps)))
    size = [1, *((side + 1) * factor for side in cells.shape[1:3]), classes]
    grown = tf.nn.conv2d_transpose(cells / inside, down, size, factor, "VALID").numpy()[0]
    scores = grown[half : half + height, half : half + width]
    # Equal sums differ in their last digit.
    return (scores >= scores.max(-1, keepdims=True) - 1e-5).argmax(-1)


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_the_default_is_the_convolution_with_the_networks_own_kernel(factor):
    for size in ((37, 50), (16, 23)):
        label = random_mask(*size, 4)
        np.testing.assert_array_equal(DEFAULT.prediction(label, factor, 4), convolved(label, factor, 4))


@pytest.mark.parametrize(("kind", "filter_"), [("triangle", PIL.Image.BILINEAR), ("cubic", PIL.Image.BICUBIC)])
def test_stretched_grids_shrink_and_grow_as_pil_does(kind, filter_):
    noise = np.random.default_rng(0).random((29, 1)).astype(np.float32)
    line = PIL.Image.fromarray(noise)
    for factor in (2, 5):
        cells = -(-29 // factor)
        small = np.asarray(line.resize((1, cells), filter_))
        np.testing.assert_allclose(down_matrix(29, factor, kind, "stretched", "renormalized") @ noise, small, atol=1e-5)
        grown = np.asarray(PIL.Image.fromarray(small).resize((1, 29), filter_))
        mine = up_matrix(29, factor, "linear" if kind == "triangle" else "cubic", "stretched") @ small
        inner = slice(None) if kind == "triangle" else slice(2 * factor, -2 * factor)
        np.testing.assert_allclose(mine[inner], grown[inner], atol=1e-5)


def cells_of(size, factor, grid):
    """Centres where values are taken, centres where they are put, and their distance."""
    count = size / factor
    count = max(1, math.floor(count) if "whole" in grid else math.floor(count + 0.5) if "rounded" in grid else math.ceil(count))
    if grid.startswith("stretched"):
        step = size / count
        return [step * i + (step - 1) / 2 for i in range(count)], [step * i + (step - 1) / 2 for i in range(count)], step
    blocks = [factor * i + (factor - 1) / 2 for i in range(count)]
    if grid.startswith("edges"):
        return [factor * i - 0.5 for i in range(count + 1)], [factor * i - 0.5 for i in range(count + 1)], factor
    if grid in ("top left", "first"):
        taken = [factor * i for i in range(count)]
        return taken, blocks if grid == "first" else taken, factor
    if grid in ("centred", "corners"):
        step = factor if grid == "centred" or count == 1 else (size - 1) / (count - 1)
        placed = [(size - 1) / 2 + step * (i - (count - 1) / 2) for i in range(count)]
        return placed, placed, step
    return blocks, blocks, factor


def weight(kind, away, step):
    """How much a pixel so far from the centre counts."""
    if kind == "box":
        return max(0, min(away + 0.5, step / 2) - max(away - 0.5, -step / 2))
    if kind in ("sampled", "linear"):
        return max(0, 1 - abs(away))
    if kind == "triangle":
        return max(0, 1 - abs(away) / step)
    x = abs(away) / step
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0


def shrinking(size, factor, kind, grid, border):
    centres, _, step = cells_of(size, factor, grid)
    matrix = np.zeros((len(centres), size))
    for row, centre in zip(matrix, centres, strict=True):
        if kind == "nearest":
            row[min(max(math.floor(centre + 0.5), 0), size - 1)] = 1
            continue
        centre, total = min(max(centre, 0), size - 1) if kind == "sampled" else centre, 0
        for pixel in range(-4 * factor, size + 4 * factor):
            part = weight(kind, pixel - centre, step)
            total += part
            while border == "mirrored" and not 0 <= pixel < size:
                pixel = -1 - pixel if pixel < 0 else 2 * size - 1 - pixel
            if 0 <= pixel < size:
                row[pixel] += part
        row /= row.sum() if border == "renormalized" else total
    return matrix


def growing(size, factor, kind, grid):
    _, centres, step = cells_of(size, factor, grid)
    matrix, last = np.zeros((size, len(centres))), len(centres) - 1
    for pixel, row in enumerate(matrix):
        place = (pixel - centres[0]) / step
        if kind == "nearest":
            row[min(max(math.floor(place + 0.5), 0), last)] = 1
            continue
        place = min(max(place, 0), last) if kind == "linear" else place
        for cell in range(math.floor(place) - 2, math.floor(place) + 4):
            row[min(max(cell, 0), last)] += weight(kind, cell - place, 1)
    return matrix


def slowly(protocol, label, factor, classes):
    """A protocol, step by step in float64."""
    if protocol.void == "nearest":
        known = np.argwhere(label != VOID)
        label = np.array(
            [
                [label[tuple(known[((known - at) ** 2).sum(1).argmin()])] for at in row]
                for row in np.argwhere(label > -1).reshape(*label.shape, 2)
            ]
        )
    label = np.where(label == VOID, 0 if protocol.void == "background" else classes, label)
    kind = "box" if protocol.down == "majority" else protocol.down
    rows, columns = (shrinking(side, factor, kind, protocol.grid, protocol.border) for side in label.shape)
    # The last channel is void, which only one of the protocols lets win.
    cells = np.stack([rows @ (label == number) @ columns.T for number in range(classes + 1)], -1)
    if protocol.border == "background":
        cells[..., 0] += 1 - cells.sum(-1)
    if protocol.void == "left out":
        cells /= np.maximum(1 - cells[..., -1:], 1e-6)
    if protocol.void != "class":
        cells = cells[..., :-1]
    if protocol.down == "majority":
        cells = np.eye(cells.shape[-1])[(cells >= cells.max(-1, keepdims=True) - 1e-5).argmax(-1)]
    rows, columns = (growing(side, factor, protocol.up, protocol.grid) for side in label.shape)
    grown = np.einsum("yi,ijc,xj->yxc", rows, cells, columns)
    return (grown >= grown.max(-1, keepdims=True) - 1e-5).argmax(-1)


def test_every_protocol_equals_its_slow_form():
    for protocol in PROTOCOLS:
        for size, factor in (((13, 19), 4), ((7, 10), 5), ((3, 4), 8)):
            if protocol.void == "nearest":
                # Of labelled pixels at equal distances any will do.
                label = random_mask(*size, 3)
                label[label == VOID], label[1, 1:3] = 1, VOID
                label[0:3, 0:4] = np.where(label[0:3, 0:4] == VOID, VOID, 2)
            else:
                label = random_mask(*size, 3, seed=factor)
            np.testing.assert_array_equal(
                protocol.prediction(label, factor, 3), slowly(protocol, label, factor, 3), err_msg=f"{protocol}, {size}, {factor}"
            )


def test_nothing_is_lost_at_factor_one():
    label = random_mask(11, 14, 5)
    (matrix,) = upper_bounds([label], 5, (1,))[0]
    assert DEFAULT.mean_iou(matrix) == 100 and matrix[:5].sum() == (label != VOID).sum()


def test_protocols_share_one_pass_and_memory():
    labels = [random_mask(20, 30, 3, seed) for seed in range(3)]
    together = upper_bounds(iter(labels), 3, (8, 4), PROTOCOLS)
    assert together.shape == (len(PROTOCOLS), 2, 4, 4) and together.dtype == np.int64
    alone = sum(upper_bounds([label], 3, (4,), (PROTOCOLS[3],))[0, 0] for label in labels)
    np.testing.assert_array_equal(together[3, 1], alone)
    assert DEFAULT in PROTOCOLS and len(set(map(str, PROTOCOLS))) == len(PROTOCOLS)


def test_distance_is_of_the_published_factors():
    assert distance(list(PUBLISHED.values())) == 0 and tuple(PUBLISHED) == FACTORS
    assert distance([51.9, 98.0, 100], (128, 4, 1)) == pytest.approx(1.5)


def test_void_is_a_class_where_there_is_no_background():
    assert default_protocol(LABELS["voc"]) == DEFAULT
    assert default_protocol(LABELS["camvid"]).void == "class" == default_protocol(generic_table(["sky", "sea"])).void


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "masks").mkdir()
    for index in range(3):
        PIL.Image.fromarray(random_mask(30 + index, 40, 4, index).astype(np.uint8)).save(tmp_path / "masks" / f"m{index}.png")
    (tmp_path / "some.txt").write_text("m2\nm0\n")
    return tmp_path


def test_the_command_prints_a_line_a_factor(folder, capsys):
    options = ("bounds", "--data-dir", folder, "--split", "some", "--factors", "8,4")
    assert run(analyze, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = [np.array(PIL.Image.open(folder / "masks" / f"{name}.png")).astype(np.int32) for name in ("m2", "m0")]
    scores = [DEFAULT.mean_iou(matrix) for matrix in upper_bounds(labels, 21, (8, 4))[0]]
    expected = [f"factor {factor} mean IoU {score:.1f}" for factor, score in zip((8, 4), scores, strict=True)]
    assert lines[-2:] == expected
    assert run(analyze, *options, "--all-protocols", "--json", folder / "bounds.json", "--limit", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if " down, " in line and not line.startswith("protocol:")]
    found = json.loads((folder / "bounds.json").read_text())
    assert len(rows) == len(PROTOCOLS) == len(found["protocols"]) and found["num_images"] == 1
    assert [float(row.split()[-1]) for row in rows] == sorted(float(row.split()[-1]) for row in rows)
    assert lines[-1] == f"factor 4 mean IoU {found['protocols'][-1]['mean_iou'][1]:.1f}"
    assert found["published"] == [96.4, 98.5] and found["protocols"][-1]["void"] == "background"


def test_data_sets_by_name_work_as_well(capsys):
    assert run(analyze, "bounds", "--data", "shapes", "--limit", 2, "--factors", "4") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("factor 4 mean IoU ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "som"), "has no som.txt: did you mean 'some'"),
        (("--split", "empty"), "empty.txt is empty: expected names of masks"),
        (("--split", "lost"), "m9.png is missing (1 of 2 that lost.txt lists)"),
        (("--split", "some", "--factors", "0"), "--factors 0: expected positive numbers"),
        (("--split", "some", "--limit", "0"), "--limit 0: expected at least 1"),
        (("--split", "void"), "no pixel of 1 label maps has a label"),
        (("--split", "some", "--json", "."), "--json .: expected a file, received a folder: pass --json ./bounds.json"),
        (("--data-dir", "none"), "bounds received data_dir none: expected a folder with masks/*.png"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, options, message):
    (folder / "empty.txt").write_text("\n")
    (folder / "lost.txt").write_text("m0\nm9\n")
    (folder / "void.txt").write_text("void\n")
    PIL.Image.fromarray(np.full((4, 4), VOID, np.uint8)).save(folder / "masks" / "void.png")
    assert run(analyze, "bounds", "--data-dir", folder, *options) == 2
    assert message in capsys.readouterr().err


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(KerassegError, match="received down='boxes'"):
        Protocol("boxes")
    with pytest.raises(KerassegError, match="factors"):
        upper_bounds([np.zeros((2, 2), int)], 2, (0,))
    with pytest.raises(KerassegError, match="label map 1 holds 2"):
        upper_bounds([np.full((2, 2), 2)], 2, (1,))
    with pytest.raises(KerassegError, match="has no folder masks"):
        mask_folder(tmp_path, "val")


def test_real_masks_come_out_near_the_published_bounds(data_dir):
    data = mask_folder(data_dir / "voc2012_masks", "seg11valid")
    assert len(data) == 736
    labels = [data.read_label(index) for index in range(0, 736, 16)]
    factors = (64, 16, 4)
    scores = [DEFAULT.mean_iou(matrix) for matrix in upper_bounds(labels, 21, factors)[0]]
    # A sixteenth of the images: within what the choice of images does.
    assert scores == sorted(scores) and distance(scores, factors) < 8, scores


@pytest.mark.slow
def test_the_papers_table(data_dir, capsys):
    assert run(analyze, "bounds", "--data-dir", data_dir / "voc2012_masks", "--split", "seg11valid") == 0
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert all(re.fullmatch(r"factor \d+ mean IoU \d+\.\d", line) for line in lines)
    assert distance([float(line.split()[-1]) for line in lines]) < 1.2
