"""What is said before a training that will disappoint."""

import keras
import pytest
from cli_helpers import TOY, run, toy_offered

from kerasseg.cli import train
from kerasseg.cli.options import offered_arguments
from kerasseg.cli.running import run_command
from kerasseg.errors import DegenerateRateWarning
from kerasseg.layers import BatchNormalization
from kerasseg.recipes import RECIPES, Recipe
from kerasseg.training.diagnosis import notices

RECIPE = Recipe(name="toy", **TOY).override(validate_every=None)


def model_of(*momenta):
    image = x = keras.Input((4, 4, 3))
    for momentum in momenta:
        x = BatchNormalization(momentum=momentum)(x)
    return keras.Model(image, x)


def test_slow_moving_statistics_are_noticed():
    # 0.99^100 = 0.366; 0.9^100 is nothing.
    (line,) = notices(model_of(0.9, 0.99), 100)
    assert "after 100 passes the moving statistics" in line and "still be 37 % what they began with" in line
    assert notices(model_of(0.9), 100) == [] == notices(model_of(), 1)
    # The paper's 30,000 steps leave 0.9997^30000 = 0.0001.
    assert notices(model_of(0.9997), 30_000) == [] and notices(model_of(0.9997), 600)
    frozen = model_of(0.99)
    frozen.layers[1].trainable = False
    assert notices(frozen, 1) == []


def test_the_command_line_says_so_before_it_trains(tmp_path, capsys):
    with toy_offered(toy="test_notices:RECIPE"):
        assert run(train, "--recipe", "toy", "--run-dir", tmp_path / "run") == 0
    # Four steps at 0.99.
    assert (
        "after 4 passes the moving statistics of batch normalization, by which it predicts, will still be 96 %"
        in capsys.readouterr().out
    )


def test_without_a_recipe_statistics_are_quick_enough():
    short = offered_arguments(RECIPES["shapes"].override(arch="deeplab_v3"))
    assert short.arguments["batch_norm_momentum"] == 0.9 and "padding" not in short.arguments
    assert offered_arguments(RECIPES["shapes"]).arguments["padding"] == "same"
    own = RECIPES["shapes"].override(arch="deeplab_v3", arguments={"batch_norm_momentum": 0.5})
    assert offered_arguments(own).arguments["batch_norm_momentum"] == 0.5


def test_a_warning_of_this_library_is_one_line(capsys):
    import warnings

    def command(arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the map is\n small", DegenerateRateWarning, stacklevel=1)
            warnings.warn("for developers", DeprecationWarning, stacklevel=1)

    usual = warnings.formatwarning
    with pytest.MonkeyPatch.context() as patch:
        # pytest collects warnings; here they shall be shown.
        patch.setattr(warnings, "showwarning", _shown)
        assert run_command(command, []) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "warning: the map is small"
    assert "test_notices.py" in rest[0] and "DeprecationWarning: for developers" in rest[0]
    assert warnings.formatwarning is usual


def _shown(message, category, filename, lineno, file=None, line=None):
    import sys
    import warnings

    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
