"""What a training run leaves behind: log, curves and pictures, checkpoints, the trained network."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from kerasseg.data import DataSet, Example
from kerasseg.errors import KerassegError
from kerasseg.evaluation import Inference, evaluate, predict, side_by_side
from kerasseg.evaluation.evaluator import scored_head
from kerasseg.evaluation.loading import copy_weights, evaluation_network
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network
from kerasseg.runs import Run, atomic_path
from kerasseg.training.trainer import Step, Trainer

# Called with each record of the log, and with what else is worth a line; see `train_recipe`.
Report = Callable[[Mapping[str, Any]], None]

# Validation images that TensorBoard shows at each validation, and their longer side in pixels.
_PICTURES, _PICTURE_SIDE = 3, 160


class NonFiniteStateError(KerassegError):
    """What a step left is infinite or not a number, and was not saved.

    Args:
        step: Number of the step, counted from 1.
    """

    def __init__(self, step: int):
        super().__init__(f"the weights are not finite after step {step}: lower --learning-rate")


class Recorder:
    """Writes and reports what happens in a run; one process of a cluster has it. To be made before the trainer's first step.

    Args:
        recipe: What is trained.
        run: Where it is recorded.
        trainer: What trains.
        data: What it trains on.
        validation: Data to validate on, or `None`.
        report: Called with each record.
    """

    def __init__(self, recipe: Recipe, run: Run, trainer: Trainer, data: DataSet, validation: DataSet | None, report: Report):
        self._recipe, self._run, self._trainer, self._data = recipe, run, trainer, data
        self._validation, self._report = validation, report
        self._checkpoints = run.checkpoints(recipe.keep_checkpoints)
        self._start = trainer.step
        self._first_state = None if run.exists else trainer.state()
        self._writer, self._other_form = None, None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception):
        if self._writer:
            self._writer.close()

    def catch_up(self) -> None:
        """Validates the state that the run goes on from, where the process was asked to end before it could; before any step."""
        log = [record for record in self._run.read_log() if record.get("step", 0) <= self._start]
        if not log or log[-1].get("step") != self._start or "mean_iou" in log[-1] or not self._validates_after(self._start):
            return
        log[-1] |= self._scores(self._start)
        self._save(self._start, self._trainer.state(), log[-1]["mean_iou"])
        # Last, and in one piece: whoever is killed before finds the record without a score, and validates again.
        with atomic_path(self._run.log_path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in log))
        self._show(log[-1])

    def begin(self) -> None:
        """Begins the run directory, after the first call of a new run: what is wrong with the images has shown then."""
        # As it was before the first step: one that is killed before the next checkpoint trains and records all steps again.
        self._save(self._start, self._first_state)
        self._first_state = None
        self._run.begin(self._recipe.to_json(), self._data.labels, self._data.heads, self._data.ids)

    def resume(self) -> None:
        """Brings the run directory to where the trainer stood when the recorder was made."""
        self._run.rewind_log(self._start)
        if self._start < self._recipe.iterations:
            # Until the run is finished again, its checkpoints are what counts.
            self._run.model_path.unlink(missing_ok=True)
        if self._recipe.to_json() != self._run.recipe():
            self._run.update(self._recipe.to_json())

    def after(self, step: Step, *, stopping: bool = False) -> None:
        """Validates, records, reports and saves, where it is time to.

        Args:
            step: The step that was done.
            stopping: Whether the process is asked to end: this state is saved, and validated when the run is resumed.
        Raises:
            NonFiniteStateError: If the state to be saved is not finite.
        """
        record = {"step": step.step, "loss": step.loss, "learning_rate": step.learning_rate}
        if self._validates_after(step.step) and not stopping:
            record |= self._scores(step.step)
        self._run.log(record)
        self._show(record)
        if stopping or self._is_last(step.step) or step.step % self._recipe.checkpoint_every == 0 or "mean_iou" in record:
            self._save(step.step, self._trainer.state(), record.get("mean_iou"))

    def _scores(self, step: int) -> dict[str, float]:
        model = self._evaluated()
        scores = validate(self._recipe, model, self._validation, self._recipe.validation_images)
        if self._validation.photographs:
            self._draw(step, model)
        return scores

    def _evaluated(self) -> keras.Model:
        """The network as it is evaluated: the one that trains, unless that one has another form."""
        if not self._recipe.trains_another_form:
            return self._trainer.model
        if self._other_form is None:
            # Built once, because it is traced anew each time.
            self._other_form = build_network(self._recipe, self._data.num_classes, initial_weights=False)
        copy_weights(self._trainer.model, self._other_form)
        return self._other_form

    def _save(self, step: int, state: Mapping[str, np.ndarray], score: float | None = None) -> None:
        """Saves a state, if there is a way on from it."""
        if not all(np.isfinite(value).all() for value in state.values() if value.dtype.kind == "f"):
            raise NonFiniteStateError(step)
        self._checkpoints.save(step, state, score)

    def _show(self, record: Mapping[str, float]) -> None:
        self._plot(record)
        self._report(record)

    def _curves(self) -> tf.summary.SummaryWriter:
        # Not before the run directory is begun.
        self._writer = self._writer or tf.summary.create_file_writer(str(self._run.tensorboard_path))
        return self._writer

    def _plot(self, record: Mapping[str, float]) -> None:
        with self._curves().as_default(step=record["step"]):
            for name, value in record.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def _draw(self, step: int, model: keras.Model) -> None:
        with self._curves().as_default(step=step):
            tf.summary.image("validation", _pictures(self._recipe, model, self._validation))

    def _is_last(self, step: int) -> bool:
        return step == self._recipe.iterations

    def _validates_after(self, step: int) -> bool:
        return self._validation is not None and (self._is_last(step) or step % self._recipe.validate_every == 0)

    def finish(self) -> keras.Model:
        """Writes the trained network: the best of the validations, or the last step."""
        if self._recipe.validate_every and self._recipe.keep_best:
            best = self._checkpoints.best(lambda notice: self._report({"notice": notice}))
            if best is not None:
                self._trainer.restore(best[1])
        model, recipe = self._trainer.model, self._recipe
        if recipe.trains_another_form or recipe.precision != "float32" or self._trainer.strategy.num_replicas_in_sync > 1:
            # What is kept is the plain network: no mirrored variables, no layer that computes in bfloat16.
            model = evaluation_network(recipe, model, self._data.num_classes)
        self._run.save_model(model.save)
        return model


def validate(recipe: Recipe, model, data: DataSet, limit: int | None) -> dict[str, float]:
    """Scores a network as it is while it trains.

    Args:
        recipe: The recipe, whose image scale counts.
        model: The network.
        data: Validation data; stored features, whose scale was that of their images, are scored at their own stride.
        limit: Only the first so many images; `None` is all.
    Returns:
        The four scores of the paper, 0–1.
    """
    scale = recipe.image_scale if data.photographs else 1.0
    return evaluate(model, data, Inference(scales=(scale,)), limit=limit).summary()


def _pictures(recipe: Recipe, model, data: DataSet) -> np.ndarray:
    """A few validation images beside truth and prediction, `(1, H, W, 3)` uint8; of several heads those that are scored."""
    data, count = scored_head(data, model), min(_PICTURES, len(data))
    shown = [data[index * len(data) // count] for index in range(count)]
    pairs = [_small(example, predict(model, example.image, scales=(recipe.image_scale,))) for example in shown]
    return np.asarray(side_by_side(*zip(*pairs, strict=True), data.labels))[np.newaxis]


def _small(example: Example, prediction: np.ndarray) -> tuple[Example, np.ndarray]:
    height, width = prediction.shape
    scale = min(1.0, _PICTURE_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def resized(values, how):
        return np.asarray(PIL.Image.fromarray(values).resize(size, how))

    label = None if example.label is None else resized(example.label, PIL.Image.Resampling.NEAREST)
    # Whatever is behind the colours, such as depth, cannot be shown.
    image = resized(np.clip(np.rint(example.image[..., :3]), 0, 255).astype(np.uint8), PIL.Image.Resampling.BILINEAR)
    return dataclasses.replace(example, image=image, label=label), resized(prediction, PIL.Image.Resampling.NEAREST)
