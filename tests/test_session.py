"""One training run: what it writes and shows, what it refuses."""

import io
import json

import keras
import numpy as np
import pytest
from cli_helpers import TOY, run, states, toy, toy_offered, weights_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from kerasseg import KerassegError
from kerasseg.cli import train
from kerasseg.cli.display import Display
from kerasseg.cli.options import check_names, resolve_recipe
from kerasseg.cli.progress import Progress, duration
from kerasseg.data import open_data
from kerasseg.recipes import Recipe
from kerasseg.runs import Run
from kerasseg.training import dry_run, find_non_finite, session, train_recipe
from kerasseg.training.parts import check_shares

RECIPE = Recipe(name="toy", **TOY).override(validate_every=2, validation_images=2, checkpoint_every=3)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(toy="test_session:RECIPE"):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "run"
    train_recipe(RECIPE, Run(path))
    return path


def test_several_steps_a_call_end_where_one_by_one_does(undisturbed, tmp_path):
    """Calls of up to three steps: they end at 2 (validation), 3 (checkpoint) and 4."""
    train_recipe(RECIPE.override(steps_per_call=3), Run(tmp_path))
    assert [record["step"] for record in Run(tmp_path).read_log()] == [1, 2, 3, 4]
    for one, other in zip(Run(tmp_path).read_log(), Run(undisturbed).read_log(), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert states(tmp_path) == states(undisturbed)
    for one, other in zip(weights_of(tmp_path), weights_of(undisturbed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_only_the_chief_writes_and_reports_and_all_return_what_it_wrote(tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(session, "is_chief", lambda strategy: False)
    monkeypatch.setattr(session, "load_model", lambda path: f"the network in {path}")
    assert train_recipe(RECIPE, Run(tmp_path / "run"), report=reports.append) == f"the network in {tmp_path}/run"
    assert not (tmp_path / "run").exists() and not reports


# What it refuses


def test_a_loss_that_is_not_finite_says_where_and_how_to_go_back(tmp_path, capsys):
    options = ("--recipe", "toy", "--validate-every", "none", "--learning-rate", "1e30", "--run-dir", tmp_path / "run")
    assert run(train, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the loss became ") and "learning rate 1e+30; first in the " in line
    assert line.endswith(f"python train.py --run-dir {tmp_path}/run goes back to its first weights")
    with pytest.raises(KerassegError, match="no checkpoint was written yet"):
        # Infinite from the first step on.
        broken = tmp_path / "broken.keras"
        model = toy()
        model.get_layer("score").bias.assign([np.inf] * 6)
        model.save(broken)
        train_recipe(RECIPE, Run(tmp_path / "none"), init=broken)


CONTRADICTIONS = {
    "jit": ({"jit_compile": True}, "jit_compile needs images of one size: pass --crop-size, such as 321x321"),
    "pad": (
        {"pad_size": (64, 64), "crop_size": (64, 80)},
        "crop_size 64x80 is larger than the padded image, pad_size 64x64: pass --crop-size 64x64",
    ),
    "tpu": ({"strategy": "tpu"}, "strategy='tpu' needs images of one size"),
    "crop": (
        {"crop_size": (64, 48), "arguments": {"input_shape": [48, 48, 3]}},
        r"crop_size or pad_size makes images 64 pixels high, input_shape=\[48, 48, 3\] takes 48: pass --crop-size 48x48",
    ),
    "precision": ({"precision": "float8"}, "expected one of float32, bfloat16, float16"),
    "freeze": ({"freeze": ("frist",)}, "frist"),
    "loss weights": ({"loss_weights": {"semantic": 1.0}}, "semantic"),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_recipe_that_contradicts_itself_is_one_line(tmp_path, contradiction):
    changes, message = CONTRADICTIONS[contradiction]
    with pytest.raises(KerassegError, match=message):
        train_recipe(RECIPE.override(**changes), Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_replicas_cannot_share():
    check_shares(RECIPE.override(batch_size=6), 3)
    with pytest.raises(KerassegError, match="batch_size=4 cannot be shared by 3 replicas: make it a multiple, --batch-size 6"):
        check_shares(RECIPE.override(batch_size=4), 3)
    with pytest.raises(KerassegError, match=r"batch_size=2 \(grown to 4 by loss_sampling\) cannot be shared by 3 replicas: .* 3$"):
        check_shares(RECIPE.override(loss_sampling=0.5), 3)


def test_sampling_of_images_and_pixels_reaches_the_loop(tmp_path):
    """Every other option of the losses changes what is trained; labels are searched once, and said to be."""
    losses, searched = {}, []
    changes = {
        "plain": {},
        "hard": {"hard_pixel_share": 0.25},
        "sampled": {"loss_sampling": 0.5, "loss_sampling_cell": 4},
        "bootstrapped": {"bootstrap_classes": ("striped",)},
        "clipped": {"clip_norm": 1e-3},
        "warm": {"warmup_steps": 1, "warmup_rate": 1e-9},
    }
    for name, change in changes.items():
        recipe = RECIPE.override(**change, iterations=2, validate_every=None)
        reports = []
        train_recipe(recipe, Run(tmp_path / name), report=reports.append)
        losses[name] = [record["loss"] for record in Run(tmp_path / name).read_log()]
        (start,) = (report for report in reports if "iterations" in report)
        assert start["images"] == (4 if name == "sampled" else 2)
        searched += [report for report in reports if "searched" in report]
    assert searched[-1] == {"searched": len(open_data("shapes")), "of": len(open_data("shapes"))}
    # The quarter of largest losses has a larger mean; what changes the update alone changes the second loss alone.
    assert losses["hard"][0] > losses["plain"][0] != losses["sampled"][0]
    for name in ("clipped", "warm"):
        assert losses[name][0] == losses["plain"][0] and losses[name][1] != losses["plain"][1]


NUMBERS = {
    "--warmup-steps 4": "--warmup-steps 4: expected fewer than --iterations 4",
    "--loss-sampling 0": "--loss-sampling 0.0: expected a share above 0, at most 1",
    "--hard-pixel-share 1.5": "--hard-pixel-share 1.5: expected a share above 0, at most 1",
    "--clip-norm -1": "--clip-norm -1.0: expected a number above 0, or none",
    "--momentum 1": "--momentum 1.0: expected 0 or more, less than 1",
    "--learning-rate nan": "argument --learning-rate: received 'nan', expected a number, such as 0.5 (see train.py --help)",
    "--steps-per-call 0": "--steps-per-call 0: expected at least 1",
    "--join-timeout 0": "--join-timeout 0: expected at least 1",
    "--jitter -1": "--jitter -1: expected 0 to 10000 pixels",
}


@pytest.mark.parametrize("options", NUMBERS)
def test_a_number_out_of_range_is_one_line(options, capsys):
    assert run(train, "--recipe", "toy", *options.split(), "--dry-run") == 2
    assert capsys.readouterr().err == f"error: {NUMBERS[options]}\n"


def test_options_of_every_type():
    text = "--freeze conv1.*,fc6 --bootstrap-classes person,rider --loss-weights semantic=1 geometric=0.5 --clip-norm none"
    recipe = resolve_recipe(train.parser().parse_args([*text.split(), "--jit-compile"]))
    assert (recipe.freeze, recipe.bootstrap_classes) == (("conv1.*", "fc6"), ("person", "rider"))
    assert recipe.loss_weights == {"semantic": 1.0, "geometric": 0.5} and recipe.clip_norm is None and recipe.jit_compile
    check_names(recipe)
    with pytest.raises(KerassegError, match="received 'semantic=much', expected|expected numbers between commas"):
        train.parser().parse_args(["--loss-weights", "semantic=much"])


# Where a number that is not finite comes from


def test_the_first_value_that_is_not_finite_is_found():
    image = keras.Input((None, None, 3))
    shared = keras.layers.Dense(3, name="shared", kernel_initializer="identity")
    x = keras.layers.BatchNormalization(name="bn")(shared(keras.ops.exp(shared(image))))
    model = keras.Model(image, keras.layers.Dense(2, name="last")(keras.layers.Dropout(0.5)(x)))
    images = np.random.default_rng(0).uniform(0, 1, (2, 4, 4, 3)).astype("float32")
    before = [np.array(variable) for variable in model.variables]
    assert find_non_finite(model, images) is None
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    # exp(89) is more than float32 holds.
    assert find_non_finite(model, images * 0 + 100) == "the output of exp (Exp)"
    shared.kernel.assign(np.eye(3) * 1e20)
    # The second time that the layer is applied: 1e20 · exp(-1e19) is 0, and 1e20 · 1e19 infinite.
    assert find_non_finite(model, images * 0 - 1e19) == "the output of shared (Dense)"
    images[0, 1, 2, 0] = np.inf
    assert find_non_finite(model, images) == "the images"
    model.get_layer("last").bias.assign([0, np.nan])
    shared.kernel.assign(np.full((3, 3), np.inf))
    assert find_non_finite(model, images) == "the weights of shared, last"


# What a person sees


def test_curves_and_small_pictures_of_each_validation(undisturbed):
    events = EventAccumulator(str(undisturbed / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    log = Run(undisturbed).read_log()
    losses = [float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]
    assert losses == pytest.approx([record["loss"] for record in log])
    pictures = events.Tensors("validation")
    assert [event.step for event in pictures] == [event.step for event in events.Tensors("mean_iou")] == [2, 4]
    width, height, png = pictures[0].tensor_proto.string_val[:3]
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert picture.size == (int(width), int(height)) and picture.width <= 3 * 160 + 4 * 8
    # The truth of the first image stands in the second column, in the colours of the label table.
    data = open_data("shapes", split="val")
    colors = {tuple(data.labels.palette[value]) for value in np.unique(data[0].label) if value != 255}
    assert len(colors) > 1 and colors <= {color for _, color in picture.getcolors(picture.width * picture.height)}


def test_a_dry_run_measures_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    recipe = RECIPE.override(iterations=1000, freeze=("first",), accumulation=2)
    found = dry_run(recipe)
    # TensorFlow's own files go when the process ends.
    assert not [path for path in tmp_path.iterdir() if "autograph" not in path.name]
    # first: 3·3·3·4 + 4; batch normalization: twice 4 and as many statistics; score: 4·6 + 6.
    assert (found.trainable, found.frozen) == (8 + 30, 112 + 8)
    assert (found.network, found.images, found.classes, found.images_per_step) == ("toy", len(open_data("shapes")), 6, 4)
    # Weights and momentum of what trains, frozen weights and statistics, four bytes each; names and headers come on top.
    assert 4 * (2 * 38 + 120) < found.checkpoint < 20_000
    assert 50e6 < found.memory < 50e9 and 0 < found.step < found.first_step
    assert found.evaluation == pytest.approx(2 * found.evaluation_image)
    # 334 saves and 501 validations.
    assert found.total == pytest.approx(found.first_step + 999 * found.step + 334 * found.save + 501 * found.evaluation)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_leaves_a_network_in_float32(tmp_path, precision):
    model = train_recipe(RECIPE.override(precision=precision, validate_every=None, iterations=2), Run(tmp_path))
    assert {str(weight.dtype) for weight in model.weights} == {"float32"} and model.compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    with np.load(tmp_path / "checkpoints/step-00000002.npz") as arrays:
        # Loss scaling has a state of its own.
        assert any(name.startswith("trainer/") for name in arrays) == (precision == "float16")


def test_the_display_writes_lines_and_a_summary(capsys, monkeypatch, tmp_path):
    clock = iter([0.0, 0.0, 10.0, 10.0, 10.0, 10.0, 30.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Display() as display:
        display({"done": 0, "iterations": 4, "images": 5})
        display({"step": 1, "loss": 2.0, "learning_rate": 0.01})
        display({"step": 2, "loss": 1.5, "learning_rate": 0.005, "mean_iou": 0.25})
        display({"notice": "a line"})
    first, second, notice = capsys.readouterr().out.splitlines()
    # The first step takes 10 seconds and counts for nothing; the second takes 20, so that two more take 40.
    assert first == "step 1/4 loss 2, rate 0.01"
    assert second == "step 2/4 loss 1.5, rate 0.005, validation mean IoU 25.00 % (0.25 images/s, 40 s left)"
    assert notice == "a line"
    log = [{"step": 1, "mean_iou": 0.5}, {"step": 2, "mean_iou": 0.25}]
    assert display.summary(tmp_path, log).splitlines() == [
        "trained 2 steps in 30 s, 0.25 images/s",
        "best validation mean IoU: 50.00 % after step 1",
        f"trained network: {tmp_path}/model.keras",
        f"evaluate it: python evaluate.py {tmp_path}",
    ]


def test_durations():
    assert [duration(s) for s in (0.04, 9.96, 45, 723, 12_300)] == ["0.04 s", "10 s", "45 s", "12 min 3 s", "3 h 25 min"]


def test_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with Progress("step", 3, unit="images", size=2) as progress:
        for done in (1, 2, 3):
            progress.update(done, "loss 1")
    assert "3/3" in screen.getvalue() and "images/s" in screen.getvalue() and "loss 1" in screen.getvalue()


def test_fine_tuning_on_ones_own_photographs_is_one_line(tmp_path):
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        for split in ("train", "val"):
            (tmp_path / "my_photos" / kind / split).mkdir(parents=True)
            for index in range(2):
                Image.new(mode, (40, 30), 1 if mode == "L" else (9, 9, 9)).save(tmp_path / f"my_photos/{kind}/{split}/{index}.png")
    (tmp_path / "my_photos/classes.txt").write_text("background\nthing\n")
    line = f"--arch fcn8s --weights imagenet --data folder --data-dir {tmp_path}/my_photos"
    recipe = resolve_recipe(train.parser().parse_args(line.split()))
    assert (recipe.weights, recipe.width_multiplier, recipe.learning_rate) == ("imagenet", 1.0, 1e-4)
    # Without the download, and narrow: the rest of the line as it is.
    tiny = ("--weights", "none", "--width-multiplier", "0.0625", "--iterations", "1", "--batch-size", "1", "--crop-size", "32x32")
    assert run(train, *line.split(), *tiny, "--run-dir", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/labels.json").read_text())["classes"] == ["background", "thing"]
