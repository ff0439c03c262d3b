"""Command-line options: what they read, what they refuse, and which stages they hold in."""

import json

import pytest
from cli_helpers import TOY, run, toy_offered, write_camvid

from kerasseg import KerassegError
from kerasseg.cli import check_xla, evaluate, train
from kerasseg.cli.options import check_names, fitted_arguments, resolve_recipe, with_options
from kerasseg.recipes import RECIPES, Recipe, Stage

STAGED = Recipe(
    name="staged",
    **TOY,
    replicas=2,
    strategy="mirrored",
    stages=(Stage(name="a", changes={"data_dir": "elsewhere"}), Stage(name="b", changes={"arguments": {"width_multiplier": 1.0}})),
)
ON_CAMVID = Recipe(
    name="on_camvid",
    **{**TOY, "data": "camvid", "crop_size": (32, 32), "image_scale": 1.0, "iterations": 1},
    stages=(Stage(name="a"), Stage(name="b")),
)


@pytest.fixture(scope="module", autouse=True)
def offered():
    with toy_offered(staged="test_options:STAGED", on_camvid="test_options:ON_CAMVID"):
        yield


def resolved(*arguments):
    return resolve_recipe(train.parser().parse_args(list(arguments)))


def test_none_empties_a_mapping():
    losses = resolved("--recipe", "deeplab_v2_resnet101_voc", "--loss-weights", "none")
    assert losses.loss_weights == {} and losses.training_arguments == {"upsample_logits": False, "auxiliary_outputs": True}
    one = resolved("--recipe", "deeplab_v2_resnet101_voc", "--loss-weights", "fusion=2")
    assert one.loss_weights == {"fusion": 2.0, "scale_1": 1.0, "scale_075": 1.0, "scale_05": 1.0}
    with pytest.raises(KerassegError, match="--loss-weights none empties it: omit the other entries, or none"):
        resolved("--recipe", "deeplab_v2_resnet101_voc", "--loss-weights", "none", "fusion=2")


# Stages


@pytest.mark.parametrize("stage", [(), ("--stage", "a"), ("--stage", "b")], ids=str)
def test_where_the_data_lie_and_where_it_trains_holds_in_all_stages(stage):
    recipe = resolved("--recipe", "staged", *stage, "--data-dir", "/cam", "--strategy", "multiworker", "--join-timeout", "7")
    for one in (recipe.stage("a"), recipe.stage("b"), recipe.final()):
        assert (one.data_dir, one.strategy, one.join_timeout, one.replicas) == ("/cam", "multiworker", 7, 2)


def test_the_other_options_hold_in_the_stage_that_is_named():
    recipe = resolved("--recipe", "staged", "--stage", "b", "--data-dir", "/cam", "--momentum", "0.5", "--arguments", "trunks=[]")
    assert (recipe.stage("a").momentum, recipe.stage("b").momentum) == (0.9, 0.5)
    assert recipe.stage("a").arguments == {} and recipe.stage("b").arguments == {"trunks": [], "width_multiplier": 1.0}


def test_a_stage_alone_begins_a_run_on_data_in_a_folder(tmp_path):
    camvid, path = write_camvid(tmp_path / "camvid"), tmp_path / "run"
    assert run(train, "--recipe", "on_camvid", "--stage", "a", "--data-dir", camvid, "--run-dir", path) == 0
    recipes = [json.loads((path / place / "recipe.json").read_text()) for place in ("stages/1-a", ".")]
    assert [recipe["data_dir"] for recipe in recipes] == [str(camvid)] * 2


@pytest.mark.parametrize("options", [("--recipe", "staged"), ("--recipe", "staged", "--stage", "a")])
def test_one_device_has_no_replicas_left(options):
    assert resolved(*options, "--strategy", "one").final().replicas is None
    assert resolved(*options, "--strategy", "one", "--replicas", "3").final().replicas == 3
    assert resolved(*options, "--strategy", "mirrored").final().replicas == 2


GIVEN = (
    "--crop-size 600x600 --flip --margin 10 --label-margin 10 --label-offset 1 --training-arguments upsample_logits=true "
    "--random-scale 0.5,2 --random-scale-step 0.25 --color-jitter 0.5 --jitter 3 --resize 9x9 --examples objects --boxes b.json"
)


def test_what_photographs_go_through_is_not_for_stored_features():
    options = [*GIVEN.split(), "--momentum", "0.5", "--arguments", "dropout_rate=0.1"]
    before, recipe = RECIPES["dilation8_camvid"], resolved("--recipe", "dilation8_camvid", *options)
    for name in (option[2:].replace("-", "_") for option in GIVEN.split() if option.startswith("--")):
        assert getattr(recipe.stage("context"), name) == getattr(before.stage("context"), name)
        for stage in ("frontend", "joint"):
            # They mirror already.
            assert name == "flip" or getattr(recipe.stage(stage), name) != getattr(before.stage(stage), name)
    assert (recipe.stage("context").momentum, recipe.stage("context").arguments["dropout_rate"]) == (0.5, 0.1)
    named = resolved("--recipe", "dilation8_camvid", "--stage", "context", "--crop-size", "66x66", "--flip")
    assert (named.stage("context").crop_size, named.stage("context").flip) == ((66, 66), True)
    assert named.stage("frontend") == before.stage("frontend")


def fitted(*arguments):
    options = train.parser().parse_args(list(arguments))
    return fitted_arguments(resolve_recipe(options), options)


def test_an_argument_is_for_the_stages_whose_network_takes_it(tmp_path, capsys):
    before, recipe = RECIPES["dilation8_camvid"], fitted("--recipe", "dilation8_camvid", "--arguments", "context=large")
    assert recipe.stage("frontend").arguments == before.stage("frontend").arguments
    assert recipe.stage("context").arguments == {**before.stage("context").arguments, "context": "large"}
    assert recipe.stage("joint").arguments == {**before.stage("joint").arguments, "context": "large"}
    # A stage that has no arguments of its own has those of the recipe.
    recipe = fitted("--recipe", "dilation8_camvid", "--training-arguments", "margin=none", "context=basic")
    assert "context" not in recipe.stage("frontend").training_arguments and "margin" in recipe.stage("frontend").training_arguments
    assert recipe.stage("joint").training_arguments["context"] == "basic"
    assert run(train, "--recipe", "dilation8_camvid", "--arguments", "contxt=large", "--run-dir", tmp_path / "run") == 2
    message = "no network of recipe dilation8_camvid (dilation_frontend, dilation8) has an argument 'contxt': omit it or correct it"
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


# Numbers

REFUSED = {
    "--batch-size": ("0", "-1"),
    "--keep-checkpoints": ("0",),
    "--checkpoint-every": ("0",),
    "--validate-every": ("0",),
    "--validation-images": ("0", "-5"),
    "--steps-per-call": ("0",),
    "--join-timeout": ("0",),
    "--step-size": ("0",),
    "--seed": ("-1", str(2**32)),
    "--learning-rate": ("-1e-3", "nan", "inf"),
    "--warmup-rate": ("-1", "nan", "inf"),
    "--warmup-steps": ("-1", "1000"),
    "--weight-decay": ("-1e-4", "nan", "inf"),
    "--momentum": ("-0.1", "1", "nan"),
    "--power": ("-1", "nan", "inf"),
    "--gamma": ("0", "-1", "nan", "inf"),
    "--clip-norm": ("0", "-1", "nan", "inf"),
    "--color-jitter": ("-0.1", "1.1", "nan"),
    "--jitter": ("-1", "10001"),
    "--loss-sampling": ("0", "1.1", "nan"),
    "--loss-sampling-cell": ("0", "10001"),
    "--hard-pixel-share": ("0", "1.1", "nan"),
    "--image-scale": ("0", "-1", "nan", "inf"),
    "--width-multiplier": ("0", "-1", "nan", "inf"),
    "--random-scale": ("0,1", "-1,1", "2,1", "nan,1", "1,inf", "1"),
    "--class-weights": ("1,-1", "1,nan", "inf,1"),
    "--loss-weights": ("a=-1", "a=nan", "a=inf"),
    "--multipliers": (".*=-1,1", ".*=nan,1", ".*=1,inf"),
    "--arguments": ("dropout_rate=NaN", "dropout_rate=Infinity", "x=[1,-Infinity]"),
}
ALLOWED = {
    "--learning-rate": ("0", "1e-30"),
    "--warmup-rate": ("0",),
    "--warmup-steps": ("999",),
    "--momentum": ("0", "0.999"),
    "--power": ("0", "1"),
    "--gamma": ("1", "0.1"),
    "--clip-norm": ("none", "0.1"),
    "--color-jitter": ("0", "1"),
    "--jitter": ("0", "10000"),
    "--loss-sampling": ("1",),
    "--loss-sampling-cell": ("1", "10000"),
    "--random-scale": ("1,1", "0.5,2", "none"),
    "--class-weights": ("0,1", "none"),
    "--multipliers": (".*=0,0",),
    "--seed": ("0", str(2**32 - 1)),
    "--validate-every": ("1", "none"),
}


def pairs(table):
    return [(option, value) for option, values in table.items() for value in values]


# Long enough for any warm-up above.
LONG = ("--iterations", "1000")


@pytest.mark.parametrize(("option", "value"), pairs(REFUSED))
def test_a_number_out_of_range_is_refused_by_its_name(option, value):
    with pytest.raises(KerassegError) as error:
        check_names(resolved(*LONG, f"{option}={value}"))
    message = str(error.value)
    assert option in message and "expected" in message and "\n" not in message


@pytest.mark.parametrize(("option", "value"), pairs(ALLOWED))
def test_a_number_at_the_end_of_its_range_is_taken(option, value):
    check_names(resolved(*LONG, f"{option}={value}"))


@pytest.mark.parametrize("values", [{"gamma": float("nan")}, {"random_scale": (0.5, float("inf"))}, {"momentum": 1.0}])
def test_a_recipe_from_a_file_is_held_to_the_same_ranges(values):
    recipe = Recipe.from_json(json.loads(json.dumps(STAGED.override(**values).to_json())))
    with pytest.raises(KerassegError, match=f"--{next(iter(values)).replace('_', '-')} .*expected"):
        check_names(with_options(recipe, train.parser().parse_args([])))


def test_a_crf_is_a_name_in_every_stage(tmp_path):
    file = tmp_path / "best.json"
    file.write_text("{}")
    for value, hint in (("deeplab_v9", "did you mean 'deeplab_v1'"), (str(file), "evaluate.py --crf"), ("search", "evaluate.py")):
        for recipe in ("staged", "shapes"):
            with pytest.raises(KerassegError, match=f"--crf '{value}': no such parameters; .*{hint}") as error:
                check_names(resolved("--recipe", recipe, "--crf", value))
            assert "\n" not in str(error.value)
    with pytest.raises(KerassegError, match="--crf 'deeplab_v9'"):
        check_names(resolved("--recipe", "staged", "--stage", "a", "--crf", "deeplab_v9"))
    for value in ("deeplab_v1", "none"):
        check_names(resolved("--recipe", "staged", "--crf", value))


def test_arguments_of_a_crf_rnn_need_one():
    given = ("--crf-rnn-arguments", "iterations=2")
    for recipe in ("shapes", "staged"):
        with pytest.raises(KerassegError, match=r"--crf-rnn-arguments iterations: .* has no CRF-RNN, pass --crf-rnn with them"):
            check_names(resolved("--recipe", recipe, *given))
        check_names(resolved("--recipe", recipe, *given, "--crf-rnn"))
    with pytest.raises(KerassegError, match="--crf-rnn-arguments iterations: crf_rnn has its own, give it --arguments"):
        check_names(resolved("--arch", "crf_rnn", *given))
    # In one stage alone.
    check_names(resolved("--recipe", "staged", *given, "--stage", "b", "--crf-rnn"))
    # What a stage switches on or off.
    on, off = Stage(name="on", changes={"crf_rnn": True}), Stage(name="off", changes={"crf_rnn": False})
    for base, stages in ((STAGED, (Stage(name="a"), on)), (STAGED.override(crf_rnn=True), (off, Stage(name="b")))):
        options = train.parser().parse_args(["--crf-rnn-arguments", "iterations=2"])
        changed = with_options(base.override(stages=stages), options)
        check_names(changed)
        assert {stage.name: changed.stage(stage.name).crf_rnn_arguments for stage in stages} == dict.fromkeys(
            [stage.name for stage in stages], {"iterations": 2}
        )
    options = train.parser().parse_args(["--crf-rnn-arguments", "iterations=2", "--stage", "off"])
    with pytest.raises(KerassegError, match="--crf-rnn-arguments iterations: staged-off has no CRF-RNN"):
        check_names(with_options(STAGED.override(crf_rnn=True, stages=(off, Stage(name="b"))), options))


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_the_widths_that_xla_is_asked_for_are_numbers_above_0(value, capsys):
    assert run(check_xla, "--arch", "fcn8s", f"--width-multiplier={value}") == 2
    assert capsys.readouterr().err.startswith("error: --batch-size 1 --width-multiplier ")


def test_scales_of_an_evaluation_are_numbers(capsys):
    assert run(evaluate, "--scales", "0.5,nan") == 2
    assert "received '0.5,nan', expected numbers between commas" in capsys.readouterr().err


# Replicas


@pytest.mark.parametrize("arguments", [(), ("--strategy", "one")], ids=str)
def test_replicas_need_a_strategy_that_has_them(tmp_path, capsys, arguments):
    assert run(train, "--arch", "toy", "--replicas", "2", *arguments, "--run-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "replicas=2 for strategy 'one'" in line and "--strategy mirrored" in line and not (tmp_path / "run").exists()
