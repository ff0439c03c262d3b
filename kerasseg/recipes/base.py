"""What a recipe is: everything that decides a training run, in one frozen record."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kerasseg.errors import KerassegError
from kerasseg.tables import did_you_mean


def _is(help_text: str, **arguments):
    return field(metadata={"help": help_text}, **arguments)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the runs that a recipe of several stages consists of.

    Args:
        name: Name of the stage, unique in its recipe; its run lies in `stages/<n>-<name>`.
        changes: Fields of the recipe that this stage sets otherwise.
        starts_from: Earlier stages whose weights this one begins with → suffix of the layer names that each of them fills;
            `""` for layers of the same name. `None` is the stage before, where there is one.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    starts_from: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, or several in stages: network, data, augmentation, loss, optimizer, schedule, evaluation.

    The command lines derive their options from these fields; each field's help is its metadata.

    Raises:
        KerassegError: If the stages contradict each other.
    """

    name: str = _is("name of the recipe")
    # Network
    arch: str = _is("network, by its name in kerasseg.models.MODELS", default="fcn8s")
    backbone: str | None = _is("trunk, where the network offers several", default=None)
    width_multiplier: float = _is("factor for every width of the network", default=1.0)
    output_stride: int | None = _is("image pixels per feature pixel, where the network offers several", default=None)
    weights: str | None = _is("first weights: imagenet, or a .keras or .weights.h5 file", default=None)
    arguments: Mapping[str, Any] = _is("further arguments of the network, as name=value", default_factory=dict)
    training_arguments: Mapping[str, Any] = _is(
        "arguments of the network while it trains, on top of the others, e.g. upsample_logits=false", default_factory=dict
    )
    crf_rnn: bool = _is("put a CRF-RNN behind the network, which trains with it (kerasseg.with_crf_rnn)", default=False)
    crf_rnn_arguments: Mapping[str, Any] = _is("arguments of kerasseg.with_crf_rnn, as name=value", default_factory=dict)
    freeze: tuple[str, ...] = _is("layers whose weights stay as they are, as regular expressions on names", default=())
    freeze_batch_norm: bool = _is("keep the statistics, scales and offsets of every batch normalization as they are", default=False)
    precision: str = _is("arithmetic in training: float32, bfloat16 or float16; weights stay float32", default="float32")
    quantization_aware: bool = _is(
        "train with the arithmetic of an int8 file simulated; the kept network is the plain one, to be exported as int8",
        default=False,
    )
    # Data
    data: str = _is("data set, by its name in kerasseg.data.DATA_SETS", default="shapes")
    data_dir: str | None = _is("folder of the data set", default=None)
    data_arguments: Mapping[str, Any] = _is("further arguments of the data set, as name=value", default_factory=dict)
    split: str = _is("part of the data set to train on", default="train")
    validation_split: str | None = _is("part to validate on while training", default="val")
    sampling: str = _is(
        "shuffle (each image once an epoch), replacement (an independent draw each time) or balanced (a draw of a class, then of "
        "an image that holds it)",
        default="shuffle",
    )
    cache: str | None = _is("where decoded images and labels are kept: memory, or a folder (default: nowhere)", default=None)
    skip_broken: bool = _is("leave out, count and name training images whose files are damaged, instead of stopping", default=False)
    foreground: str = _is("keep, or mask: the objects of all images, in evaluation too, are hidden", default="keep")
    background: str = _is("keep, or mask: all but the objects is hidden; with both, only their shapes are seen", default="keep")
    features: str | None = _is(
        "layer whose maps, of the network that a stage starts from, are stored once and trained on instead of images", default=None
    )
    examples: str = _is("what is cut out of the images: images (nothing), objects or proposals", default="images")
    boxes: str | None = _is("file of boxes, JSON or CSV, for examples=proposals (default: dense windows)", default=None)
    bootstrap_classes: tuple[str, ...] = _is("names of rare classes: training images that hold one count twice", default=())
    # Augmentation, in this order
    resize: tuple[int, int] | None = _is("size that every example is resized to, e.g. 250x250", default=None)
    image_scale: float = _is("size at which images are used, as a share of their own; evaluation uses it too", default=1.0)
    random_scale: tuple[float, float] | None = _is("smallest and largest random factor on top of image_scale", default=None)
    random_scale_step: float | None = _is("distance of the random factors, e.g. 0.25 (default: any between)", default=None)
    color_jitter: float = _is("random change of brightness, contrast and saturation, by up to this share", default=0.0)
    jitter: int = _is("random translation by up to so many pixels", default=0)
    margin: int = _is("pixels by which images are continued on all sides by reflection; crops are cut from that", default=0)
    pad_size: tuple[int, int] | None = _is("size to pad whole images to, where one size is needed (tpu)", default=None)
    crop_size: tuple[int, int] | None = _is("random crop, height and width in pixels, e.g. 321x321", default=None)
    flip: bool = _is("mirror half of the images", default=False)
    loss_sampling: float = _is("probability that a cell of the label counts; batch_size grows by its inverse", default=1.0)
    loss_sampling_cell: int = _is("side of the cells that loss_sampling draws, in pixels of the label", default=1)
    # Loss and optimizer
    loss: str = _is("cross_entropy (softmax), or sigmoid_cross_entropy", default="cross_entropy")
    loss_weights: Mapping[str, float] = _is("factors of the losses of several outputs, as output=factor", default_factory=dict)
    label_offset: int = _is("rows and columns cut off a label before it is subsampled to smaller logits", default=0)
    label_margin: int = _is("pixels of the label that a network without padding of its own eats on every side", default=0)
    hard_pixel_share: float = _is("share of each image's valid pixels, those of the largest loss, that count", default=1.0)
    class_weights: tuple[float, ...] | None = _is("weight of each class in the loss, e.g. 1,2,0.5", default=None)
    loss_normalization: str = _is("valid: mean over pixels that are not ignored; sum: sum over them", default="valid")
    optimizer: str = _is("sgd (Caffe's), adam or adamw", default="sgd")
    learning_rate: float = _is("rate at which the schedule starts, after the warm-up", default=1e-3)
    momentum: float = _is("momentum of sgd", default=0.9)
    weight_decay: float = _is("L2 decay, as Caffe adds it to the gradient (adamw: decoupled)", default=0.0)
    clip_norm: float | None = _is("largest norm of all gradients together (default: no limit)", default=None)
    multipliers: Mapping[str, tuple[float, float]] = _is(
        "regular expression on variable paths → (rate, decay) factors, as pattern=rate,decay", default_factory=dict
    )
    schedule: str = _is("fixed, step or poly", default="fixed")
    power: float = _is("exponent of the poly schedule", default=0.9)
    step_size: int | None = _is("optimiser steps between the drops of the step schedule", default=None)
    gamma: float = _is("factor of each drop of the step schedule", default=0.1)
    warmup: str = _is("linear: the rate rises from warmup_rate; constant: it stays there (slow start)", default="linear")
    warmup_steps: int = _is("optimiser steps before the schedule starts; it then ends at the same iteration", default=0)
    warmup_rate: float = _is("rate of the first step of the warm-up", default=0.0)
    iterations: int = _is("optimiser steps", default=1000)
    batch_size: int = _is("images per forward pass, over all replicas", default=1)
    accumulation: int = _is("forward passes per optimiser step", default=1)
    seed: int = _is("seed of everything random", default=0)
    strategy: str = _is("where to train: one (device), mirrored, multiworker, tpu or parameter_server", default="one")
    replicas: int | None = _is("logical devices to split a CPU into, without a GPU; for parameter_server its workers", default=None)
    join_timeout: int = _is("seconds that multiworker waits for the other workers", default=300)
    steps_per_call: int = _is("optimiser steps per call of the compiled function", default=1)
    jit_compile: bool = _is("compile the step by XLA; images then need one size", default=False)
    # Records
    checkpoint_every: int = _is("optimiser steps between checkpoints", default=1000)
    keep_checkpoints: int = _is("checkpoints kept beside the best", default=2)
    validate_every: int | None = _is("optimiser steps between validations (default: never)", default=None)
    validation_images: int | None = _is("images of each validation (default: all)", default=None)
    keep_best: bool = _is("whether the trained model is the best of the validations, or else the last step", default=True)
    # Evaluation
    crf: str | None = _is("DenseCRF behind the network in evaluation: parameters, by name in kerasseg.crf.PARAMETERS", default=None)
    # Several runs, each beginning where others ended
    stages: tuple[Stage, ...] = _is("the runs, in their order", default=())
    # What it reproduces
    paper: str | None = _is("paper and table", default=None)
    expected: str | None = _is("published result and where", default=None)
    command: str | None = _is("command that runs it", default=None)

    def __post_init__(self):
        """Checks the stages, and brings what they change to the fields' types."""
        known, seen = {f.name for f in dataclasses.fields(self)} - {"stages"}, set()
        for stage in self.stages:
            if stage.name in seen:
                raise KerassegError(f"recipe {self.name} has two stages '{stage.name}': give each a name of its own")
            for predecessor in stage.starts_from or {}:
                if predecessor not in seen:
                    earlier = ", ".join(seen) or "none"
                    raise KerassegError(
                        f"stage '{stage.name}' of recipe {self.name} starts from '{predecessor}': expected an earlier stage "
                        f"({earlier})"
                    )
            for name in stage.changes:
                if name not in known:
                    raise KerassegError(f"stage '{stage.name}' of recipe {self.name} changes '{name}': {did_you_mean(name, known)}")
            seen.add(stage.name)
        # What comes as a list, from JSON or a command line, equals what was written as a tuple.
        hints = typing.get_type_hints(Recipe)
        restored = (
            dataclasses.replace(stage, changes={k: _restore(k, v, hints[k]) for k, v in stage.changes.items()})
            for stage in self.stages
        )
        object.__setattr__(self, "stages", tuple(restored))

    def stage(self, name: str) -> "Recipe":
        """Gives the recipe of one stage, its changes applied, which itself has no stages.

        A stage that starts from others has no first weights, unless its changes name them.

        Raises:
            KerassegError: If there is no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                first = {"weights": None} if self.predecessors(name) else {}
                return self.override(**{"name": f"{self.name}-{name}", **first, **stage.changes, "stages": ()})
        raise KerassegError(f"recipe {self.name} has no stage '{name}': {did_you_mean(name, [s.name for s in self.stages])}")

    def predecessors(self, name: str) -> dict[str, str]:
        """Tells which earlier stages a stage begins with, and the suffix of the layer names that each fills."""
        names = [stage.name for stage in self.stages]
        index = names.index(name)
        given = self.stages[index].starts_from
        if given is not None:
            return dict(given)
        return {names[index - 1]: ""} if index else {}

    def final(self) -> "Recipe":
        """Gives what the trained network is: the recipe of the last stage, or the recipe itself."""
        return self.stage(self.stages[-1].name) if self.stages else self

    def network_arguments(self) -> dict[str, Any]:
        """Collects the keyword arguments of the network's builder; options left at their default are not among them.

        The network is the one that is evaluated and kept; `training_arguments` are not among them.
        """
        named = {"backbone": self.backbone, "output_stride": self.output_stride, "weights": self.weights}
        return {"width_multiplier": self.width_multiplier, **{k: v for k, v in named.items() if v is not None}, **self.arguments}

    def on_features(self, data_dir: str) -> "Recipe":
        """Gives the recipe as it trains on stored `features`: these are its data, their images were scaled and padded before.

        Args:
            data_dir: Folder of the stored features.
        """
        own = {"data": "features", "data_dir": str(data_dir), "data_arguments": {}, "cache": None, "features": None}
        return self.override(**own, image_scale=1.0, pad_size=None)

    def as_trained(self) -> "Recipe":
        """Gives the recipe whose network is the one that trains: its `training_arguments` are among its arguments."""
        return self.override(arguments={**self.arguments, **self.training_arguments}, training_arguments={})

    @property
    def trains_another_form(self) -> bool:
        """Whether the network that trains is built otherwise than the one that is evaluated and kept."""
        return bool(self.training_arguments) or self.quantization_aware

    def with_crf(self, crf: str, expected: str | None) -> "Recipe":
        """Gives the recipe of another row of a table: the same network, trained alike, and a DenseCRF behind it in evaluation.

        Args:
            crf: Its parameters, by their name in `kerasseg.crf.PARAMETERS`.
            expected: Published result and where.
        Returns:
            A recipe of this one's name and `_crf`; of several stages, the last has the CRF.
        """
        return self._of_another_row(f"{self.name}_crf", crf=crf, expected=expected)

    def with_stage(self, name: str, last: Stage, expected: str | None) -> "Recipe":
        """Gives the recipe of another row of a table: this one's stages, or the one run that it is, and a further one.

        Args:
            name: Name of the recipe.
            last: The further stage.
            expected: Published result of that and where.
        """
        stages = self.stages or (Stage(name="network"),)
        return self._of_another_row(name, expected=expected, stages=(*stages, last))

    def _of_another_row(self, name: str, **values) -> "Recipe":
        """A recipe of another name, of whose stages the last has those values, and the earlier ones what they have here."""
        *earlier, last = values.pop("stages", self.stages) or (None,)
        kept = {field: getattr(self, field) for field in values}
        stages = [dataclasses.replace(stage, changes={**kept, **stage.changes}) for stage in earlier]
        if last:
            stages.append(dataclasses.replace(last, changes={k: v for k, v in last.changes.items() if k not in values}))
        return self.override(
            name=name, command=self.command and self.command.replace(self.name, name), **values, stages=tuple(stages)
        )

    def to_json(self) -> dict[str, Any]:
        """Gives the fields as JSON-ready values."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what `to_json` gave.

        Raises:
            KerassegError: If a field is unknown or has the wrong type.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise KerassegError(f"unknown recipe field '{name}': {did_you_mean(name, known)}")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _restore(name, value, hints[name]) for name, value in values.items()})

    def override(self, **values) -> "Recipe":
        """Gives a copy with some fields changed."""
        return dataclasses.replace(self, **values)


def _plain(value):
    if isinstance(value, Stage):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _restore(name: str, value, hint):
    """Brings a JSON value back to a field's type: JSON has no tuples and no difference between 1 and 1.0."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for member in members:
        origin, element = typing.get_origin(member) or member, (typing.get_args(member) or (None,))[-1]
        if origin is tuple and isinstance(value, (list, tuple)):
            return tuple(map(_restore_stage, value)) if Stage in typing.get_args(member) else tuple(value)
        if origin is Mapping and isinstance(value, Mapping):
            return {k: tuple(v) if typing.get_origin(element) is tuple else v for k, v in value.items()}
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is origin:
            return value
    expected = " or ".join(getattr(m, "__name__", str(m)) for m in members)
    raise KerassegError(f"recipe field '{name}' is {value!r}: expected {expected}")


def _restore_stage(value) -> Stage:
    names = [f.name for f in dataclasses.fields(Stage)]
    if isinstance(value, Stage):
        return value
    if (
        isinstance(value, Mapping)
        and "name" in value
        and set(value) <= set(names)
        and isinstance(value.get("changes", {}), Mapping)
    ):
        return Stage(**value)
    raise KerassegError(f"recipe field 'stages' has {value!r}: expected entries of {', '.join(names)}")
