"""What a training run leaves behind: log, curves and pictures, checkpoints, the trained network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from kerasseg.data import DataSet, Example
from kerasseg.evaluation import Inference, evaluate, predict, side_by_side
from kerasseg.labels import LabelTable
from kerasseg.recipes import Recipe
from kerasseg.recipes.building import build_network
from kerasseg.runs import Run
from kerasseg.training.trainer import Step, Trainer

# Called with each record of the log, and with what else is worth a line; see `train_recipe`.
Report = Callable[[Mapping[str, Any]], None]

# Validation images that TensorBoard shows at each validation, and their longer side in pixels.
_PICTURES, _PICTURE_SIDE = 3, 160


class Recorder:
    """Writes and reports what happens in a run; one process of a cluster has it.

    Args:
        recipe: What is trained.
        run: Where it is recorded.
        trainer: What trains.
        labels: Classes of the data.
        validation: Data to validate on, or `None`.
        report: Called with each record.
    """

    def __init__(self, recipe: Recipe, run: Run, trainer: Trainer, labels: LabelTable, validation: DataSet | None, report: Report):
        self._recipe, self._run, self._trainer, self._labels = recipe, run, trainer, labels
        self._validation, self._report = validation, report
        self._checkpoints = run.checkpoints(recipe.keep_checkpoints)
        self._writer = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception):
        if self._writer:
            self._writer.close()

    def begin(self) -> None:
        """Begins the run directory."""
        # Kept at once: what the run started from would be lost by a crash before the first regular checkpoint.
        self._checkpoints.save(self._trainer.step, self._trainer.state())
        self._run.begin(self._recipe.to_json(), self._labels)

    def resume(self) -> None:
        """Brings the run directory to where the trainer stands, before its next step."""
        step = self._trainer.step
        record = next((record for record in self._run.read_log() if record.get("step") == step), None)
        missed = record is not None and "mean_iou" not in record and self._validates_after(step)
        self._run.rewind_log(step - 1 if missed else step)
        if self._recipe.to_json() != self._run.recipe():
            self._run.update(self._recipe.to_json())
        if step < self._recipe.iterations:
            # Until the run is finished again, its checkpoints are what counts.
            self._run.model_path.unlink(missing_ok=True)
        if missed:
            # The process was asked to end here, and had no time to validate.
            self.after(Step(step, record["loss"], record["learning_rate"]))

    def after(self, step: Step, *, stopping: bool = False) -> None:
        """Validates, records, reports and saves, where it is time to.

        Args:
            step: The step that was done.
            stopping: Whether the process is asked to end: this state is saved, and validated when the run is resumed.
        """
        record = {"step": step.step, "loss": step.loss, "learning_rate": step.learning_rate}
        if self._validates_after(step.step) and not stopping:
            record |= validate(self._recipe, self._trainer.model, self._validation, self._recipe.validation_images)
            self._draw(step.step)
        self._run.log(record)
        self._plot(record)
        self._report(record)
        if stopping or self._is_last(step.step) or step.step % self._recipe.checkpoint_every == 0 or "mean_iou" in record:
            self._checkpoints.save(step.step, self._trainer.state(), record.get("mean_iou"))

    def _curves(self) -> tf.summary.SummaryWriter:
        # Not before the run directory is begun.
        self._writer = self._writer or tf.summary.create_file_writer(str(self._run.tensorboard_path))
        return self._writer

    def _plot(self, record: Mapping[str, float]) -> None:
        with self._curves().as_default(step=record["step"]):
            for name, value in record.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def _draw(self, step: int) -> None:
        with self._curves().as_default(step=step):
            tf.summary.image("validation", _pictures(self._recipe, self._trainer.model, self._validation))

    def _is_last(self, step: int) -> bool:
        return step == self._recipe.iterations

    def _validates_after(self, step: int) -> bool:
        return self._validation is not None and (self._is_last(step) or step % self._recipe.validate_every == 0)

    def finish(self) -> keras.Model:
        """Writes the trained network: the best of the validations, or the last step."""
        best = (
            self._checkpoints.best(lambda notice: self._report({"notice": notice}))
            if self._recipe.validate_every and self._recipe.keep_best
            else None
        )
        if best is not None:
            self._trainer.restore(best[1])
        model = self._trainer.model
        if self._recipe.precision != "float32" or self._trainer.strategy.num_replicas_in_sync > 1:
            # What is kept is the plain network: no mirrored variables, no layer that computes in bfloat16.
            plain = build_network(self._recipe, model.output_shape[-1], initial_weights=False)
            plain.set_weights(model.get_weights())
            model = plain
        self._run.save_model(model.save)
        return model


def validate(recipe: Recipe, model, data: DataSet, limit: int | None) -> dict[str, float]:
    """Scores a network as it is while it trains.

    Args:
        recipe: The recipe, whose image scale counts.
        model: The network.
        data: Validation data.
        limit: Only the first so many images; `None` is all.
    Returns:
        The four scores of the paper, 0–1.
    """
    return evaluate(model, data, Inference(scales=(recipe.image_scale,)), limit=limit).summary()


def _pictures(recipe: Recipe, model, data: DataSet) -> np.ndarray:
    """A few validation images beside truth and prediction, `(1, H, W, 3)` uint8."""
    count = min(_PICTURES, len(data))
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
    image = resized(example.image, PIL.Image.Resampling.BILINEAR)
    return dataclasses.replace(example, image=image, label=label), resized(prediction, PIL.Image.Resampling.NEAREST)
