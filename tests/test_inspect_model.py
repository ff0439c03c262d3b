"""The table of a network's layers against values worked out by hand."""

import json

import keras
import numpy as np
import pytest
from cli_helpers import finish, run
from helpers import random_model

from kerasseg.backbones.building import network
from kerasseg.cli import inspect_model, main
from kerasseg.layers import AlignedResizeLike, AtrousPooling2D, Conv2D, Subsampling2D
from kerasseg.models import MODELS


def by_name(rows):
    return {row.layer: row for row in rows}


def test_fcn32s_by_hand(capsys):
    rows = by_name(inspect_model.run(["fcn32s", "--input-size", "500"]))
    # FACTS' sizes; the field is 404 (Table 1) from fc6 on; a bilinear map of stride 32 is made of two cells each way.
    expected = {
        "conv1_1": (1, (1, 1), (3, 3), 3, (698, 698, 64), 3 * 3 * 3 * 64 + 64),
        "pool1": (2, None, (2, 2), 6, (349, 349, 64), 0),
        "pool5": (32, None, (2, 2), 212, (22, 22, 512), 0),
        "fc6": (32, (1, 1), (7, 7), 404, (16, 16, 4096), 7 * 7 * 512 * 4096 + 4096),
        "score_fr": (32, (1, 1), (1, 1), 404, (16, 16, 21), 4096 * 21 + 21),
        "upscore": (1, None, (64, 64), 404 + 32, (544, 544, 21), 0),
        "score": (1, None, None, 404 + 32, (500, 500, 21), 0),
    }
    for name, (stride, rate, kernel, field, output, parameters) in expected.items():
        row = rows[name]
        assert (row.stride, row.rate, row.kernel) == (stride, rate, kernel), name
        assert (row.receptive_field, row.output, row.parameters) == ((field, field), output, parameters), name
    assert rows["conv1_1"].multiply_adds == 698 * 698 * 3 * 3 * 3 * 64
    assert rows["fc6"].multiply_adds == 16 * 16 * 7 * 7 * 512 * 4096 and rows["pool5"].multiply_adds is None
    assert sum(row.parameters for row in rows.values()) == 134_346_581
    heads, *lines, last = capsys.readouterr().out.splitlines()
    assert heads.split() == ["layer", "type", "stride", "rate", "kernel", "field", "output", "parameters"]
    assert [line.split()[0] for line in lines] == list(rows)
    fc6 = next(line for line in lines if line.startswith("fc6"))
    assert fc6.split() == ["fc6", "Conv2D", "32", "1", "7x7", "404", "16x16x4096", "102,764,544"]
    assert last.startswith("fcn32s on 500x500x3: 134,346,581 parameters, ")
    assert last.endswith(" G multiply-adds, output stride 32 (its coarsest), receptive field there 404 pixels")


def test_arguments_of_the_network(capsys, tmp_path):
    options = ("--num-classes", "4", "--width-multiplier", "0.0625", "--arguments", "padding=same", "input_shape=[null,null,4]")
    assert run(inspect_model, "fcn16s", *options, "--input-size", "64x96", "--json", tmp_path / "table.json") == 0
    written = json.loads((tmp_path / "table.json").read_text())
    assert (written["network"], written["inputs"]) == ("fcn16s", [[64, 96, 4]])
    rows = {row["layer"]: row for row in written["layers"]}
    assert rows["score_fr"]["output"] == [2, 3, 4] and rows["score"]["output"] == [64, 96, 4]
    # Of the transposed one, every cell of the input meets the kernel: 4×4, 4 to 4 classes.
    assert rows["upscore2"]["multiply_adds"] == 2 * 3 * 4 * 4 * 4 * 4
    assert rows["conv1_1_bgrd"]["parameters"] == 3 * 3 * 4 * 4 + 4
    totals = written["totals"]
    assert totals["parameters"] == MODELS["fcn16s"](4, width_multiplier=1 / 16, input_shape=(None, None, 4)).count_params()
    assert totals["multiply_adds"] == sum(row["multiply_adds"] or 0 for row in rows.values())
    assert (totals["output_stride"], totals["receptive_field"]) == (32, [404, 404])
    assert f"{totals['parameters']:,} parameters" in capsys.readouterr().out


def test_a_dilated_network_by_hand():
    rows = by_name(inspect_model.run(["deeplab_v1_largefov", "--width-multiplier", "0.0625", "--input-size", "321"]))
    # Pools of 3×3: 5 + 2 = 7, 7 + 2·2·2 + 2·2 = 19, 19 + 3·2·4 + 2·4 = 51, 51 + 3·2·8 + 2·8 = 115 behind pool4 at stride 8.
    assert (rows["pool4"].stride, rows["pool4"].receptive_field) == (8, (115, 115))
    # Three at rate 2: 115 + 3·4·8 = 211; two pools of 3×3 without stride add 16 each; fc6 at rate 12 adds 24·8.
    assert (rows["conv5_3"].stride, rows["conv5_3"].rate, rows["conv5_3"].receptive_field) == (8, (2, 2), (211, 211))
    fc6 = rows["fc6"]
    assert (fc6.stride, fc6.rate, fc6.kernel, fc6.receptive_field) == (8, (12, 12), (3, 3), (435, 435))
    assert fc6.output == (41, 41, 64) and fc6.multiply_adds == 41 * 41 * 3 * 3 * 32 * 64


def test_a_network_of_several_trunks_that_pools_globally():
    rows = by_name(
        inspect_model.run(["deeplab_v3", "--output-stride", "8", "--backbone", "resnet50", "--width-multiplier", "0.0625"])
    )
    convolutions = [row for row in rows.values() if row.kernel == (3, 3) and row.rate != (1, 1) and row.type == "Conv2D"]
    # Six units of block3 at rate 2, those of block4 at 4 · (1, 2, 4), and three branches of the pyramid.
    assert [row.rate[0] for row in convolutions] == [2] * 6 + [4, 8, 16] + [12, 24, 36]
    assert {row.stride for row in convolutions} == {8} and {row.output[:2] for row in convolutions} == {(65, 65)}
    logits = rows["logits"]
    assert (logits.stride, logits.receptive_field, logits.output) == (1, (None, None), (513, 513, 21))


def test_a_classifier_made_dense_is_followed_to_its_end(capsys):
    options = ("deeplab_v3", "--backbone", "mobilenet_v2", "--output-stride", "8", "--input-size", "129x161")
    rows = by_name(inspect_model.run(options))
    assert "?" not in capsys.readouterr().out
    # The field is that of the classifier itself, which is worked out in test_geometry.
    end = rows["out_relu"]
    assert (end.stride, end.receptive_field, end.output) == (8, (491, 491), (16, 20, 1280))
    padded = rows["block_14_depthwise"]
    assert (padded.stride, padded.rate, padded.kernel, padded.output) == (8, (4, 4), (3, 3), (16, 20, 960))
    assert padded.multiply_adds == 16 * 20 * 960 * 9
    # Of 16 and 20 cells, the first and the last end up on the first and the last of 129 and 161 pixels.
    assert rows["logits"].stride == "15/16x19/20"


@keras.saving.register_keras_serializable("tests")
class Mystery(keras.layers.Layer):
    """Does not say where its cells lie."""

    def call(self, x):
        return x


def test_maps_that_meet_unaligned_and_dense_pools(tmp_path, capsys):
    image = keras.Input((None, None, 3))
    # At even sizes the border of the first lies below and to the right alone, so that its cells lie between the other's.
    x = keras.layers.Add()([Conv2D(4, 3, strides=2, padding="same")(image), Conv2D(4, 1, strides=2)(image)])
    x = AtrousPooling2D((3, 3), 2, 2, name="pool")(x)
    squeezed = keras.layers.GlobalAveragePooling2D(keepdims=True, name="squeezed")(Subsampling2D(2, name="grid")(x))
    x = keras.layers.Dense(5, name="dense")(keras.layers.Multiply(name="scaled")([x, squeezed]))
    keras.Model(image, x, name="meeting").save(tmp_path / "meeting.keras")
    rows = by_name(inspect_model.run([tmp_path.joinpath("meeting.keras").as_posix(), "--input-size", "32x40"]))
    assert rows["add"].stride == 2 and rows["add"].receptive_field == (3, 3)
    pool = rows["pool"]
    assert (pool.stride, pool.rate, pool.kernel, pool.receptive_field) == (2, (2, 2), (3, 3), (3 + 8, 3 + 8))
    assert rows["dense"].multiply_adds == 16 * 20 * 4 * 5
    # Of stride 4, but no map of the network.
    assert rows["grid"].stride == 4 and (rows["squeezed"].stride, rows["scaled"].stride) == ("image", 2)
    assert capsys.readouterr().out.endswith("output stride 2 (its coarsest), receptive field there the whole image\n")


def test_what_differs_in_height_and_width(tmp_path, capsys):
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, (3, 5), strides=(3, 2), name="uneven")(image)
    keras.Model(image, keras.layers.Conv2D(4, 1, strides=(1, 2), name="end")(x), name="bars").save(tmp_path / "bars.keras")
    rows = by_name(inspect_model.run([str(tmp_path / "bars.keras"), "--input-size", "33"]))
    assert (rows["uneven"].stride, rows["uneven"].receptive_field) == ("3x2", (3, 5)) and rows["end"].stride == "3x4"
    assert "output stride 3x4 (its coarsest), receptive field there 3x5 pixels" in capsys.readouterr().out


def odd_network():
    image = keras.Input((None, None, 3))
    x = Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="halved")(image)
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pooled")(x)
    wide = keras.layers.DepthwiseConv2D((1, 5), padding="same", name="wide")(x)
    both = keras.layers.Concatenate(name="both")([wide, AlignedResizeLike(name="spread")([pooled, x])])
    shared = Conv2D(2, 1, name="shared")
    separable = keras.layers.SeparableConv2D(8, 3, padding="same", name="separable")(both)
    outputs = [shared(separable), shared(Mystery(name="mystery")(separable))]
    return keras.Model(image, {"plain": outputs[0], "dark": outputs[1]}, name="odd")


def test_what_is_not_known_is_shown_as_such(tmp_path, capsys):
    path = tmp_path / "odd.keras"
    odd_network().save(path)
    rows = by_name(inspect_model.run([str(path), "--input-size", "33x40"]))
    # Moved by a pixel along the even side alone.
    assert (rows["halved"].stride, rows["halved"].receptive_field, rows["halved"].output) == (2, (3, 3), (17, 20, 4))
    assert (rows["pooled"].stride, rows["pooled"].receptive_field) == ("image", (None, None))
    assert (rows["wide"].kernel, rows["wide"].receptive_field) == ((1, 5), (3, 11))
    assert rows["wide"].multiply_adds == 17 * 20 * 4 * 5
    assert rows["both"].receptive_field == (None, None) and rows["both"].output == (17, 20, 8)
    # 3×3 of each channel and 8 × 8 sums.
    assert rows["separable"].multiply_adds == 17 * 20 * (9 * 8 + 8 * 8)
    assert (rows["mystery"].stride, rows["mystery"].receptive_field) == ("?", "?")
    # Counted once, however often it is used.
    assert rows["shared"].parameters == 8 * 2 + 2 and rows["shared (again)"].parameters == 0
    assert rows["shared (again)"].stride == "?" and rows["shared"].multiply_adds == rows["shared (again)"].multiply_adds
    *lines, summary = capsys.readouterr().out.splitlines()
    text = {line.split()[0]: line for line in lines}
    assert text["wide"].split()[2:6] == ["2", "1", "1x5", "3x11"] and text["mystery"].split()[2:4] == ["?", "?"]
    # What lies behind it may be coarser.
    assert summary.endswith("output stride ? (its coarsest), receptive field there ?")
    inspect_model.run([str(path), "--input-size", "33x40", "--json", str(tmp_path / "odd.json")])
    totals = json.loads((tmp_path / "odd.json").read_text())["totals"]
    assert totals["output_stride"] is totals["receptive_field"] is None


def test_a_saved_network_is_shown_as_it_was_built(tmp_path, capsys):
    model = random_model("fcn_pool3", padding="same")
    model.save(tmp_path / "model.keras")
    options = ["--width-multiplier", "0.0625", "--num-classes", "5", "--arguments", "padding=same"]
    saved = inspect_model.run([str(tmp_path / "model.keras"), "--input-size", "64"])
    assert saved == inspect_model.run(["fcn_pool3", *options, "--input-size", "64"])
    # The weights of the one that was opened are still there.
    assert np.any(model.get_layer("conv1_1").kernel)
    assert run(inspect_model, tmp_path / "model.keras", "--output-stride", "8") == 2
    assert "error: --output-stride is for a network by name, and " in capsys.readouterr().err


def test_a_network_of_several_images():
    rows = by_name(inspect_model.run(["fcn32s", "--arguments", 'late_fusion=["color","hha"]', "width_multiplier=0.0625"]))
    assert rows["conv1_1color"].parameters == rows["conv1_1hha"].parameters == 3 * 3 * 3 * 4 + 4


def test_the_dtype_policy_stays(capsys):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert run(inspect_model, "fcn_pool3", "--width-multiplier", "0.0625", "--input-size", "32") == 0
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


@network(minimum_size=16, divisor=8)
def picky(num_classes=21, *, input_shape=(None, None, 3)):
    """A network that takes some sizes only."""
    image = keras.Input(input_shape)
    return keras.Model(image, Conv2D(num_classes, 3)(image), name="picky")


@pytest.mark.parametrize("size", ["8x16", "16x8", "24x20", "20x24"])
def test_sizes_that_the_network_does_not_take(size, monkeypatch, capsys):
    monkeypatch.setitem(MODELS._locations, "picky", f"{__name__}:picky")
    assert run(inspect_model, "picky", "--input-size", "16x24") == 0
    capsys.readouterr()
    assert run(inspect_model, "picky", "--input-size", size) == 2
    assert capsys.readouterr().err == f"error: --input-size {size}: picky takes sizes from 16 pixels, multiples of 8\n"


def test_an_image_too_small_for_a_saved_network(tmp_path, capsys):
    image = keras.Input((None, None, 3))
    inner = keras.Model(image, Conv2D(2, 7)(Conv2D(2, 3, strides=4)(image)), name="inner")
    again = keras.Input((None, None, 3))
    keras.Model(again, inner(again), name="deep").save(tmp_path / "deep.keras")
    assert run(inspect_model, tmp_path / "deep.keras", "--input-size", "5x5") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --input-size 5x5: deep cannot be built for it: ") and err.count("\n") == 1
    assert "Exception encountered" not in err and "\x1b" not in err and "negative" in err


def test_the_table_does_not_go_into_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, message in ((tmp_path, f"--json {tmp_path}: expected a file, received a folder"), (tmp_path / "file/a.json", "file")):
        assert run(inspect_model, "fcn_pool3", "--width-multiplier", "0.0625", "--input-size", "32", "--json", path) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and message in captured.err and not captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fcn8x",), "error: unknown arch 'fcn8x': did you mean 'fcn8s'?"),
        (("fcn8s", "--arguments", "paddin=same"), "error: fcn8s has no argument 'paddin': did you mean 'padding'?"),
        (("fcn8s", "--output-stride", "8"), "error: fcn8s has no argument 'output_stride'"),
        (("fcn8s", "--arguments", "input_shape=5"), "error: fcn8s cannot be built with num_classes=21, input_shape=5: "),
        (("fcn8s", "--arguments", "padding=same", "padding=authors"), "error: received padding=same and padding=authors: pass it"),
        (
            ("fcn8s", "--arguments", "width_multiplier=2", "--width-multiplier", "1"),
            "error: received width_multiplier=2 and width_multiplier=1.0: pass it once, e.g. by --width-multiplier alone",
        ),
        (("fcn8s", "--input-size", "0"), "error: argument --input-size: received '0', expected HEIGHTxWIDTH"),
        (("fcn8s", "--num-classes", "0"), "error: --num-classes 0 --width-multiplier None: expected both above 0"),
        ((), "error: the following arguments are required: ARCH|RUN_OR_MODEL"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert run(inspect_model, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and not captured.out


def test_it_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["kerasseg", "inspect_model", "fcn_pool3", "--width-multiplier", "0.0625", "--input-size", "32"]
    )
    assert main.main() == 0
    assert "fcn_pool3 on 32x32x3" in capsys.readouterr().out


def test_the_script_says_how_it_is_used():
    code, out, err = finish("tools/inspect_model.py", "--help")
    assert code == 0 and not err and "receptive field" in out and "--output-stride" in out
