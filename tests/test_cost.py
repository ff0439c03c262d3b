"""Speed and size of networks against what is worked out by hand, and published."""

import json

import keras
import pytest
from cli_helpers import run

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.evaluation.analysis import at_size, expense, layer_table, live_maps, memory, network_cost, peak_memory, table_totals
from kerasseg.evaluation.analysis.layer_table import without_weights


def small(size=(None, None)):
    image = keras.Input((*size, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="wide")(image)
    y = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="half")(x)
    y = keras.layers.BatchNormalization(name="bn")(y)
    y = keras.layers.Conv2DTranspose(8, 2, 2, use_bias=False, name="up")(y)
    return keras.Model(image, keras.layers.Conv2D(2, 1, name="score")(keras.layers.Add(name="add")([x, y])), name="small")


@pytest.fixture(scope="module")
def model():
    return small()


def test_numbers_by_hand(model):
    cost = network_cost(model, (10, 12), batch_size=3, runs=4, memory=False)
    wide, half, up, score = 3 * 3 * 3 * 8, 3 * 3 * 8 * 4, 2 * 2 * 4 * 8, 8 * 2
    assert cost.parameters == wide + 8 + half + 4 + 4 * 4 + up + score + 2
    assert cost.trainable_parameters == cost.parameters - 2 * 4 and cost.weight_bytes == 4 * cost.parameters
    assert cost.multiply_adds == 120 * wide + 30 * half + 30 * up + 120 * score
    assert (cost.output_stride, cost.receptive_field, cost.inputs, cost.batch_size) == (2, (5, 5), [[10, 12, 3]], 3)
    # Per pixel: 8 stay for the sum, of 8 more each to add, and to keep.
    assert cost.live_map_bytes == 3 * 4 * 120 * (8 + 8 + 8) and cost.peak_bytes is None
    assert len(cost.seconds) == 4 and min(cost.seconds) > 0
    assert min(cost.seconds) <= cost.latency <= max(cost.seconds) and cost.images_per_second == 3 / cost.latency
    assert network_cost(model, (10, 12), runs=1, memory=False).live_map_bytes == 4 * 120 * 24


def test_maps_are_dropped_after_their_last_use():
    image = keras.Input((4, 4, 3))
    shared = keras.layers.Conv2D(3, 1, name="shared")
    first = keras.layers.Conv2D(20, 1, name="first")(shared(image))
    # The second use of a layer stands before what it is made of.
    model = keras.Model(image, shared(keras.layers.Conv2D(3, 1, name="last")(first)))
    with without_weights():
        # While `first` is made, 3 of `shared` and its own 20; while `last` is, as many.
        assert live_maps(keras.Model.from_config(model.get_config())) == 4 * 16 * 23
    image = x = keras.Input((4, 4, 3))
    kept = x = keras.layers.Conv2D(7, 1)(x)
    for _ in range(2):
        x = keras.layers.Conv2D(5, 1)(x)
    # An output stays.
    assert live_maps(keras.Model(image, [kept, x])) == 4 * 16 * (7 + 5 + 5)
    image = x = keras.Input((4, 4, 3))
    for _ in range(5):
        x = keras.layers.Conv2D(6, 1)(x)
    # Two maps of six channels, however deep; twice as many bytes of twice as many images.
    assert live_maps(keras.Model(image, x)) == 4 * 16 * 12 and live_maps(keras.Model(image, x), 2) == 2 * 4 * 16 * 12
    with pytest.raises(KerassegError, match="the size of .* is not known"):
        live_maps(small())


PUBLISHED = {
    # Parameters: Keras' documentation. Multiply-adds: 15.47 G in torchvision's table of VGG16.
    "VGG16": (138_357_544, 15.47e9, 1e-3),
    # He et al. 2016, Table 1: 3.8 × 10⁹. Its strides are in the 1×1 convolutions; later forms, of 4.1 G, have them in the 3×3 ones.
    "ResNet50": (25_636_712, 3.8e9, 2e-2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    parameters, multiply_adds, tolerance = PUBLISHED[name]
    with without_weights():
        network = at_size(getattr(keras.applications, name)(weights=None), (224, 224))
        totals = table_totals(layer_table(network))
    assert totals["parameters"] == parameters and totals["multiply_adds"] == pytest.approx(multiply_adds, rel=tolerance)


def test_peak_memory_is_that_of_the_maps():
    if not memory._RESET.exists():
        pytest.skip("this system does not count the peak memory of a process")
    image = x = keras.Input((768, 768, 3))
    for _ in range(4):
        x = keras.layers.Conv2D(16, 3, padding="same")(x)
    model = keras.Model(image, x)
    live = live_maps(model)
    assert live == 4 * 768 * 768 * 32
    # Beside the maps, TensorFlow keeps its graph and some scratch.
    assert 0.95 * live < peak_memory(model) < live + 40e6


def test_a_process_that_dies_is_one_line(monkeypatch, model):
    monkeypatch.setattr(memory, "_PROGRAM", "import os; os.kill(os.getpid(), 9)")
    if memory._RESET.exists():
        with pytest.raises(KerassegError, match="memory of small ended: it was stopped by signal 9, as when memory runs out"):
            peak_memory(model)
        monkeypatch.setattr(memory, "_PROGRAM", "raise ValueError('layer Mystery')")
        with pytest.raises(KerassegError, match="ended: ValueError: layer Mystery; use a smaller image"):
            peak_memory(model)
    monkeypatch.setattr(memory, "_RESET", memory.Path("/nowhere"))
    assert peak_memory(model) is None


def test_the_command_prints_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(expense, "peak_memory", lambda model, batch_size: 1_500_000 * batch_size)
    options = ("--width-multiplier", "0.0625", "--num-classes", "4", "--arguments", "padding=same", "--input-size", "32x64")
    assert run(analyze, "cost", "fcn16s", *options, "--runs", "2", "--batch-size", "2", "--json", tmp_path / "c.json") == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    written = json.loads((tmp_path / "c.json").read_text())
    assert lines["network"].strip() == "fcn16s on 32x64x3, 2 at once"
    assert lines["parameters"].startswith(f"{written['parameters']:,} (") and written["peak_bytes"] == 3_000_000
    assert lines["peak"].split(None, 1)[1].startswith("3.0 MB measured beside the weights") and len(written["seconds"]) == 2
    assert (written["output_stride"], written["receptive_field"]) == (32, [404, 404])


def test_mistakes_are_one_line(tmp_path, capsys):
    small((8, 8)).save(tmp_path / "model.keras")
    for arguments, message in (
        (("fcn9s",), "unknown"),
        (("fcn8s", "--batch-size", "0"), "--batch-size 0: expected at least 1"),
        (("fcn8s", "--json", tmp_path), "expected a file, received a folder"),
        ((tmp_path / "model.keras", "--backbone", "vgg16"), "--backbone is for a network by name"),
        ((tmp_path / "model.keras", "--input-size", "9"), "small takes input of 8x8x3, received images of 9x9"),
        (("deconvnet", "--input-size", "225"), "deconvnet takes sizes from 224 pixels, multiples of 32"),
    ):
        assert run(analyze, "cost", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
