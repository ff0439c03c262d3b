"""Training by a recipe: one run, or several in stages, each beginning where others ended."""

import gc
import shutil
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import keras

from kerasseg.data import DataSet
from kerasseg.errors import KerassegError
from kerasseg.evaluation import load_model
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network, open_recipe_data
from kerasseg.runs import Preempted, Run
from kerasseg.training.feature_stages import Origin, origin_of, recorded_origin
from kerasseg.training.parts import StrategyMaker, check_recipe, check_resumption, recipe_strategy
from kerasseg.training.preemption import Preemption
from kerasseg.training.recording import Report
from kerasseg.training.session import check_iterations, train_run
from kerasseg.training.strategies import is_chief, make_strategy
from kerasseg.training.workers import Workers


def train_recipe(
    recipe: Recipe,
    run: Run,
    *,
    stage: str | None = None,
    init: str | Path | None = None,
    report: Report | None = None,
) -> keras.Model:
    """Trains what a recipe describes, or resumes it exactly where the run directory stops.

    The stages of a recipe are trained in their order, each as a run of its own in `stages/<n>-<name>`; those that are finished
    are kept as they are. Everything that can be wrong with the arguments and the first images, of every stage, is found before
    the run directory is begun.

    Args:
        recipe: The recipe.
        run: Where it is recorded; a run that was begun is resumed, and its record keeps what the recipe changes.
        stage: Only this stage of the recipe; those that it starts from must be finished in the run directory.
        init: Run or model whose weights a new run starts from, all that fit; layers of other shapes stay new. With stages, the
            first one starts so, or the one that is named, instead of from its predecessors. One that was begun is resumed, and
            a notice says so: the command that began a run also resumes it.
        report: Called with each record of the log: `step`, `loss`, `learning_rate`, and scores after a validation. Also with
            `stage` (and `finished`) where a stage begins, `started_from` and `new_layers` where weights were taken over, `done`,
            `iterations` and `images` (per step) before the first step, `searched` and `of` while labels are searched for
            `bootstrap_classes` or `examples`, which is done when stages are checked and again when each begins, or for a balanced
            `sampling`, `checked` and `of` while files are checked for `skip_broken`, both of which is done once, `stored`, `of` and
            `split` while features are stored, and `notice` with a line that a person should see.
    Returns:
        The trained network, in float32: the best of the validations, or the last step where there were none or the recipe says
        so. With stages, that of the last one trained.
    Raises:
        KerassegError: If the recipe, its data, or the run directory does not allow it.
        Preempted: If the process was asked to end by SIGTERM; the run can be resumed at the very step.
    """
    report = report or (lambda record: None)
    check_same_stages(recipe, run)
    # Made once, whatever the stages: the workers of a cluster join once.
    strategies = cache(make_strategy)
    if recipe.stages:
        return _train_stages(recipe, run, stage, init, strategies, report)
    if stage:
        raise KerassegError(f"recipe {recipe.name} has no stages, received --stage {stage}: omit it")
    sources = sources_of_init(init or recorded_origin(recipe, run))
    return train_run(recipe, run, sources=sources, strategies=strategies, report=report)


def _train_stages(recipe: Recipe, run: Run, stage: str | None, init, strategies, report: Report) -> keras.Model:
    if stage:
        recipe.stage(stage)
    places = stage_runs(recipe, run)
    names = [stage] if stage else list(places)
    unfinished = {name for name, place in places.items() if not (place.exists and check_iterations(recipe.stage(name), place))}
    due = [name for name in names if stage or name in unfinished]
    if stage and not init:
        check_predecessors(recipe, places, stage)
    strategy = recipe_strategy(recipe.final(), strategies)
    workers, chief = Workers(strategy), is_chief(strategy)
    workers.check_same(len(unfinished), run.path)
    data = _check_stages(recipe, places, due, strategies, {names[0]: init}, report if chief else lambda record: None)
    model, last = None, places[recipe.stages[-1].name]
    with Preemption() as preemption:
        for name in names:
            if chief:
                report({"stage": name, "finished": name not in due})
            if name not in due:
                continue
            model = train_run(
                recipe.stage(name),
                places[name],
                sources=sources_of_init(init) if init and name == names[0] else _of_predecessors(recipe, places, name),
                strategies=strategies,
                preemption=preemption,
                on_begin=partial(_begin, recipe, run, data, places[name] is last),
                report=report,
            )
            if chief and name in unfinished:
                _report_followers(recipe, places, name, report)
            if name != due[-1] and workers.any(preemption.requested):
                raise Preempted(places[name], recipe.stage(name).iterations)
    if chief and last.model_path.is_file():
        run.save_model(partial(shutil.copyfile, last.model_path))
    return model or load_model(last.path)


def stage_runs(recipe: Recipe, run: Run) -> dict[str, Run]:
    """Gives the run of each stage, by its name, in their order."""
    return {stage.name: run.stage(number, stage.name) for number, stage in enumerate(recipe.stages, start=1)}


def check_same_stages(recipe: Recipe, run: Run) -> None:
    """Refuses to go on with other stages than a run was begun with.

    Raises:
        KerassegError: If that is so.
    """
    if not run.exists:
        return
    before, now = (", ".join(each.name for each in r.stages) or "none" for r in (Recipe.from_json(run.recipe()), recipe))
    if before != now:
        raise KerassegError(f"{run.path} was begun with the stages {before}, received {now}: choose a new --run-dir")


def check_predecessors(recipe: Recipe, places: Mapping[str, Run], stage: str) -> None:
    """Refuses a stage whose predecessors are not finished.

    Args:
        recipe: The recipe.
        places: Name of each stage → its run.
        stage: The stage to train.
    Raises:
        KerassegError: If that is so.
    """
    if places[stage].exists or recorded_origin(recipe.stage(stage), places[stage]):
        return
    for name in recipe.predecessors(stage):
        if not places[name].model_path.is_file():
            raise KerassegError(
                f"stage '{stage}' starts from '{name}', which is not finished in {places[name].path}: train it first with "
                f"--stage {name}, or pass --init with a run or model to start from"
            )


def _check_stages(
    recipe: Recipe, places: Mapping[str, Run], names: Iterable[str], strategies: StrategyMaker, init, report: Report
) -> DataSet:
    """Finds what is wrong with any stage before the first is trained, and what the last one trains on."""
    for name in names:
        if places[name].exists:
            check_resumption(recipe.stage(name), places[name])
        origin = stage_origin(recipe, places, name, init.get(name))
        data, _ = check_recipe(recipe.stage(name), strategies=strategies, origin=origin, report=report)
        # Of features, those that are stored count, which are compared when the stage goes on.
        if places[name].exists and not recipe.stage(name).features:
            places[name].check_ids(data.ids, recipe.stage(name).data)
        # Models are cycles: without this they would lie in memory together.
        gc.collect()
    return open_recipe_data(recipe.final(), recipe.final().split)


def _begin(recipe: Recipe, run: Run, data: DataSet, last: bool) -> None:
    """Begins the run as a whole, or records what changed, when one of its stages has done a step."""
    if last:
        # Until the last stage is finished again, its checkpoints are what counts.
        run.model_path.unlink(missing_ok=True)
    if not run.exists:
        run.begin(recipe.to_json(), data.labels, data.heads)
    elif run.recipe() != recipe.to_json():
        run.update(recipe.to_json())


def _report_followers(recipe: Recipe, places: Mapping[str, Run], stage: str, report: Report) -> None:
    """Says which stages do not start from what a stage has just become."""
    for name, place in places.items():
        if stage in recipe.predecessors(name) and place.exists:
            report({"notice": f"stage {name} was begun before stage {stage} ended: to start it anew, remove {place.path}"})


def sources_of_init(init: str | Path | None) -> dict[Path, str]:
    """Gives `--init` in the form in which stages name what they start from."""
    return {Path(init): ""} if init else {}


def stage_origin(recipe: Recipe, places: Mapping[str, Run], stage: str, init: str | Path | None) -> Origin | None:
    """Gives the network whose features a stage trains on: trained where it is, else as it will be built.

    Args:
        recipe: The recipe.
        places: Name of each stage → its run.
        stage: The stage.
        init: What takes the place of its predecessor.
    Returns:
        `None` for a stage that trains on images.
    Raises:
        KerassegError: If its predecessors are not one.
    """
    if not recipe.stage(stage).features:
        return None
    known = init or recorded_origin(recipe.stage(stage), places[stage])
    if known:
        return origin_of(known)
    predecessors = list(recipe.predecessors(stage))
    if len(predecessors) != 1:
        raise KerassegError(
            f"stage '{stage}' of recipe {recipe.name} trains on the features of one network, received starts_from "
            f"{', '.join(predecessors) or 'nothing'}: name one earlier stage"
        )
    if places[predecessors[0]].model_path.is_file():
        return origin_of(places[predecessors[0]].path)
    return partial(build_network, recipe.stage(predecessors[0]), initial_weights=False)


def _of_predecessors(recipe: Recipe, places: Mapping[str, Run], stage: str) -> dict[Path, str]:
    recorded = recorded_origin(recipe.stage(stage), places[stage])
    if recorded:
        return {recorded: ""}
    if recipe.stage(stage).features and places[stage].exists:
        # That their features are still those that are stored.
        return {places[name].path: "" for name in recipe.predecessors(stage) if places[name].model_path.is_file()}
    if places[stage].exists:
        return {}
    return {places[name].path: suffix for name, suffix in recipe.predecessors(stage).items()}
