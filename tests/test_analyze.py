import json

import keras
import numpy as np
import pytest
from cli_helpers import run
from inference_helpers import BOXES, image_of, photograph, scored_network
from PIL import Image

from kerasseg import KerassegError
from kerasseg.cli import analyze
from kerasseg.evaluation.analysis import DECONVNET_STAGES, activation_picture, activations, heat, proposal_picture, stage_layers
from kerasseg.layers import MinimumSize, ReflectionPadding2D


def staged_network(names=("one", "two", "three")):
    """Maps at the image's size, at half of it, and at the image's size again."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(MinimumSize(8, 4)(image))
    x = keras.layers.Conv2D(5, 3, padding="same", activation="relu", name=names[0])(x)
    x = keras.layers.Conv2D(6, 3, 2, padding="same", activation="relu", name=names[1])(x)
    x = keras.layers.Conv2DTranspose(4, 2, 2, activation="relu", name=names[2])(x)
    return keras.Model(image, keras.layers.Conv2D(3, 1, name="score")(x), name="staged")


def test_the_channel_with_the_largest_value_is_picked():
    model, image = staged_network(), photograph(16, 24)
    found = activations(model, image, ["two", "one"])
    assert [activation.layer for activation in found] == ["two", "one"]
    for name, channel, values in found:
        maps = keras.Model(model.input, model.get_layer(name).output)(image[None].astype(np.float32)).numpy()[0]
        peaks = [maps[..., c].max() for c in range(maps.shape[-1])]
        assert channel == int(np.argmax(peaks)) and max(peaks) > 0
        np.testing.assert_allclose(values, maps[..., channel], atol=1e-6)


def test_one_strong_cell_counts_more_than_many_weak_ones():
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0], image[2, 3, 1] = 100, 255
    given = keras.Input((None, None, 3))
    ((_, channel, _),) = activations(keras.Model(given, keras.layers.Activation("linear", name="same")(given)), image, ["same"])
    assert channel == 1


def test_maps_cover_the_image_and_not_what_continues_it():
    found = activations(staged_network(), photograph(13, 22), ["one", "two"])
    assert [activation.values.shape for activation in found] == [(13, 22), (7, 11)]


def test_maps_of_networks_that_pad_inside_are_cropped_to_the_image():
    given = keras.Input((None, None, 3))
    padded = keras.layers.ZeroPadding2D(9, name="padded")(keras.layers.Rescaling(1 / 255)(given))
    # One cell for each 4 pixels, of which cell i has 4i - 9 to 4i - 6: those of 0 to 12 are cells 2 to 5.
    coarse = keras.layers.AveragePooling2D(4, name="coarse")(padded)
    mirror = keras.layers.Conv2D(2, 3, name="mirrored")(ReflectionPadding2D(20)(given))
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(given)
    both = keras.layers.Add(name="added")([keras.layers.MaxPooling2D(4, 4, padding="same", name="unknown")(given), mean])
    model, image = keras.Model(given, [padded, coarse, mirror, both]), photograph(13, 22)
    found = {layer: values for layer, _, values in activations(model, image, ["padded", "coarse", "mirrored", "unknown"])}
    assert {layer: values.shape for layer, values in found.items()} == {
        "padded": (13, 22),
        "coarse": (4, 6),
        "mirrored": (13, 22),
        "unknown": (4, 6),
    }
    channel = int(np.argmax((image / 255).max((0, 1))))
    np.testing.assert_allclose(found["padded"], image[..., channel] / 255, atol=1e-6)
    full = keras.Model(given, coarse)(image[None].astype(np.float32)).numpy()[0]
    channel = int(np.argmax(full[2:6, 2:8].max((0, 1))))
    np.testing.assert_allclose(found["coarse"], full[2:6, 2:8, channel], atol=1e-6)


def test_the_largest_value_counts_only_inside_the_image():
    given = keras.Input((None, None, 3))
    # Beyond the image the first channel is 0, its largest value; inside it the second is larger.
    x = keras.layers.ZeroPadding2D(5, name="padded")(keras.layers.Rescaling(-1.0)(given))
    image = np.full((6, 7, 3), 50, np.uint8)
    image[..., 1], image[3, 3, 1] = 60, 20
    ((_, channel, values),) = activations(keras.Model(given, x), image, ["padded"])
    assert channel == 1 and values.max() == -20 and values.shape == (6, 7)


def test_stages_are_the_last_layers_of_each_resolution():
    assert stage_layers(staged_network(), (16, 24)) == ["two", "score"]
    assert [activation.layer for activation in activations(staged_network(), photograph(13, 22))] == ["two", "score"]
    # Padding by much makes larger maps, and no other resolution; a map that does not grow with the image is none.
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 1, name="first")(image)
    x = keras.layers.Conv2D(2, 1, name="padded")(keras.layers.ZeroPadding2D(150)(x))
    x = keras.layers.Conv2D(2, 8, 8, name="coarse")(keras.layers.AveragePooling2D(2, name="half")(x))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pooled")(x)
    assert stage_layers(keras.Model(image, [x, pooled]), (20, 30)) == ["padded", "half", "coarse"]
    fixed = keras.Input((16, 24, 3))
    assert stage_layers(keras.Model(fixed, keras.layers.Conv2D(2, 4, 4, name="a")(fixed)), (16, 24)) == ["a"]
    image = keras.Input((None, None, 3))
    x = image
    for name in DECONVNET_STAGES:
        x = keras.layers.Conv2D(2, 1, name=name)(x)
    assert stage_layers(keras.Model(image, keras.layers.Conv2D(3, 1)(x)), (8, 8)) == list(DECONVNET_STAGES)


def test_layers_without_a_map_are_refused():
    with pytest.raises(KerassegError, match="staged has no layer 'on': did you mean 'one'"):
        activations(staged_network(), photograph(16, 24), ["on"])
    image = keras.Input((8, 8, 3))
    flat = keras.Model(image, keras.layers.Reshape((8, 8, 1))(keras.layers.Dense(64, name="flat")(keras.layers.Flatten()(image))))
    with pytest.raises(KerassegError, match="layer 'flat' of .* has no single map to show"):
        activations(flat, photograph(8, 8), ["flat"])


def test_heat_goes_from_the_smallest_to_the_largest_value():
    found = heat(np.array([[-2.0, 0.0, 2.0, -1.0]]))
    assert found.dtype == np.uint8
    # The stops of the scale are a quarter of the range apart.
    assert found[0].tolist() == [[0, 0, 60], [0, 190, 160], [220, 30, 20], [0, 90, 200]]
    assert (heat(np.full((2, 3), 7.0)) == (0, 0, 60)).all()


def test_the_picture_of_activations_holds_every_map(tmp_path):
    model, image = staged_network(), photograph(16, 24)
    found = activations(model, image, ["one", "two", "three"])
    picture = np.asarray(activation_picture(image, found, tmp_path / "a.png", columns=2))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    assert holds(picture, image)
    for _, _, values in found:
        factor = 16 // values.shape[0]
        assert holds(picture, heat(values).repeat(factor, 0).repeat(factor, 1))


def holds(picture, part):
    windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)[:, :, 0]
    return (windows == part).all((2, 3, 4)).sum() == 1


def test_the_picture_of_proposals_outlines_those_that_count():
    image = np.full((30, 40, 3), 100, np.uint8)
    results = [np.full((30, 40, 3), shade, np.uint8) for shade in (10, 20)]
    picture = np.asarray(proposal_picture(image, BOXES, [1, 2], results))
    red = (picture == (255, 40, 40)).all(-1)
    # The outlines of a box of 20 × 26, and of it and one of 30 × 12 that crosses it in four pixels at most.
    columns = np.split(red, 2, axis=1)
    assert columns[0].sum() == 2 * (20 + 26) - 4
    both = 2 * (20 + 26) - 4 + 2 * (30 + 12) - 4
    assert both - 4 <= columns[1].sum() < both
    for shade in (10, 20):
        assert (picture == shade).all(-1).sum() >= 30 * 40


def test_commands_write_their_pictures(tmp_path, capsys):
    model, image = scored_network(), image_of()
    model.save(tmp_path / "model.keras")
    Image.fromarray(image).save(tmp_path / "cat.png")
    given = (tmp_path / "model.keras", tmp_path / "cat.png", "--out", tmp_path / "out")
    assert run(analyze, "activations", *given) == 0
    out = capsys.readouterr().out
    assert "30x40" in out and f"picture: {tmp_path / 'out/activations.png'}" in out
    (tmp_path / "boxes.json").write_text(json.dumps({"cat": BOXES.tolist()}))
    boxes = ("--proposals", tmp_path / "boxes.json", "--min-side", "8")
    assert run(analyze, "proposals", *given, *boxes, "--counts", "1,3,50") == 0
    with Image.open(tmp_path / "out/proposals.png") as picture:
        # Three columns: five of the six boxes are large enough, fewer than 50.
        assert picture.width >= 3 * 40 and (np.asarray(picture) == (255, 40, 40)).all(-1).sum() > 100


def test_every_kind_is_a_module_of_its_name(capsys):
    for name, module in analyze.KINDS.items():
        assert module.__name__ == f"kerasseg.cli.analyze.{name}"
    with pytest.raises(SystemExit):
        analyze.run(["--help"])
    assert set(analyze.KINDS) <= set(capsys.readouterr().out.split())


MISTAKES = {
    "kind": (("activation",), "argument KIND: invalid choice"),
    "image": (("activations", "model.keras", "none.png", "--out", "o"), "no such photograph: none.png"),
    "power": (("proposals", "model.keras", "cat.png", "--out", "o", "--counts", "²"), "--counts ²: expected positive numbers"),
    "no boxes": (("proposals", "model.keras", "cat.png", "--out", "o", "--proposals", ""), "--proposals '': expected a file of"),
    "file": (("proposals", "none.keras", "cat.png", "--out", "boxes.json"), "--out boxes.json: boxes.json is a file, expected"),
    "in a file": (("activations", "none.keras", "cat.png", "--out", "cat.png/o"), "--out cat.png/o: cat.png is a file, expected"),
    "counts": (("proposals", "model.keras", "cat.png", "--out", "o", "--counts", "1,x"), "--counts 1,x: expected positive numbers"),
    "layer": (("activations", "model.keras", "cat.png", "--out", "o", "--layers", "none"), "has no layer 'none'"),
    "model": (("activations", "none.keras", "cat.png", "--out", "o"), "no model at 'none.keras'"),
    "side": (("proposals", "model.keras", "cat.png", "--out", "o", "--proposals", "boxes.json"), "or --min-side 24 or less"),
    "boxes": (("proposals", "model.keras", "cat.png", "--out", "o", "--proposals", "other.json"), "has no boxes for image 'cat'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    scored_network().save("model.keras")
    Image.fromarray(image_of()).save("cat.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"cat": BOXES.tolist()}))
    (tmp_path / "other.json").write_text(json.dumps({"dog": BOXES.tolist()}))
    arguments, message = MISTAKES[mistake]
    assert run(analyze, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "o").exists()


def test_a_network_of_two_images_is_refused():
    inputs = [keras.Input((None, None, 3), name=name) for name in ("color", "hha")]
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.Add()(inputs)))
    with pytest.raises(KerassegError, match=r"has the inputs color \(3\), hha \(3\), received an image of 3 channels"):
        activations(model, image_of())
