"""Any classifier of keras.applications as a dense feature extractor, with the weights that it has.

Where a layer would take the map beyond the wanted output stride, its stride is left out and all that follows looks at every
r-th cell: the filters meet the values that they were trained on, at r² times as many places. `atrous_rules` says what becomes of
each kind of layer and why it is exact; a network with a layer that is not listed there is refused.
"""

from collections.abc import Callable
from typing import Any

import keras

from kerasseg.backbones.atrous_rules import Place, Step, refuse, rule_of
from kerasseg.backbones.building import one_of
from kerasseg.errors import KerassegError

OUTPUT_STRIDES = (4, 8, 16, 32)
# Where a classifier's map ends and its head begins.
_ENDS_OF_MAPS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.Flatten)
_BORDERS = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)
# Odd and even, so that every remainder of a stride occurs; larger than what any classifier needs at least.
_TRIAL_SIZES = (299, 352)


def atrous(classifier: keras.Model, output_stride: int) -> keras.Model:
    """Turns a classifier into a dense feature extractor of the same weights.

    With T the output stride and S the classifier's own, `extractor(image)[str(T)][:, ::S // T, ::S // T]` are the classifier's
    features, at every image size. The classifier stays as it is; its weights are copied. Batch normalisation in training sees
    the statistics of the dense map, which differ from the coarse one's.

    Args:
        classifier: A network of keras.applications, best built with `include_top=False`; a head (pooling, flattening, fully
            connected) is left out.
        output_stride: Image pixels per cell of the last map: 32, 16, 8 or 4.
    Returns:
        A model from images `(B, H, W, C)` of any size, as the classifier expects them, to a dict from strides to maps, the last
        of each stride; `str(output_stride)` is the end. The keys are strings (`"4"`, `"8"`, …), since a saved Keras model has no
        others. Layers keep their names; some gain a `<name>_atrous_pad` or `<name>_atrous_grid` before them.
    Raises:
        KerassegError: If the stride cannot be had, or a layer has no exact dense form (ConvNeXt, anything unknown), with the
            layer's name and the reason.
    Reference:
        Chen et al. 2017, arXiv:1706.05587, §3.1; the hole algorithm of Chen et al. 2015, §3.1.
    Example:
        >>> net = keras.applications.MobileNetV2(include_top=False, weights=None)
        >>> atrous(net, 16)(np.zeros((1, 65, 97, 3)))["16"].shape
        TensorShape([1, 5, 7, 1280])
    """
    trunk = trunk_of(classifier)
    source = trunk.inputs[0]
    image = keras.Input((None, None, source.shape[-1]), dtype=source.dtype, name=source._keras_history.operation.name)
    levels, own_stride = _extend(trunk, image, output_stride)
    outputs = {str(stride): level for stride, level in levels.items()}
    extractor = keras.Model(image, outputs, name=f"{classifier.name}_stride{output_stride}")
    _check_sizes(extractor, trunk, own_stride // max(levels))
    return extractor


def extend(classifier: keras.Model, x, output_stride: int, rename: Callable[[str], str] = str) -> dict:
    """Continues a graph by a classifier made dense; `atrous` for those who build a network around it.

    Args:
        classifier: As in `atrous`.
        x: Symbolic image as the classifier expects it, shape `(B, H, W, C)`.
        output_stride: As in `atrous`.
        rename: From the classifier's layer names to the new ones.
    Returns:
        Stride → map, the last of each stride; the last at `output_stride`.
    Raises:
        KerassegError: As `atrous`.
    """
    return _extend(trunk_of(classifier), x, output_stride, rename)[0]


def _extend(trunk: keras.Model, x, output_stride: int, rename: Callable[[str], str] = str) -> tuple[dict, int]:
    """Gives the levels of `extend` and the stride that the classifier itself ends with."""
    output_stride = one_of("output_stride", output_stride, OUTPUT_STRIDES, 16)
    steps, end = _plan(trunk, output_stride)
    if end.stride < output_stride:
        own = f"{trunk.name}'s last map has stride {end.stride}" if end.stride else f"{trunk.name} ends without a map"
        raise KerassegError(f"received output_stride={output_stride}, but {own}: expected at most that")
    made, levels = {}, {}
    kernels = {op for op in trunk.operations if hasattr(op, "kernel_size")}

    def clone(op):
        layer = steps[op].kind.from_config({**steps[op].config, "name": rename(op.name)})
        made[layer] = op
        return layer

    def call(layer, *args, **kwargs):
        op = made[layer]
        place, before = steps[op].place, steps[op].before
        result = layer(*args, **kwargs) if before is None else layer(before(args[0]), **kwargs)
        # An image that is only rescaled, and a map with a border or without its rim, are no levels.
        if place.stride and not isinstance(op, _BORDERS) and (levels or op in kernels):
            levels[min(place.stride, output_stride)] = result
        return result

    inputs = keras.tree.map_structure(lambda _: x, trunk.input)
    # What this returns is of no use: where x is not an input, Keras copies the graph once more.
    keras.models.clone_model(trunk, input_tensors=inputs, clone_function=clone, call_function=call)
    for layer, op in made.items():
        if getattr(op, "weights", None):
            layer.set_weights(op.get_weights())
    return levels, end.stride


def trunk_of(classifier: keras.Model) -> keras.Model:
    """Cuts a classifier's head off.

    Args:
        classifier: A functional model with one input and one output.
    Returns:
        The same layers as far as the last map; the classifier itself where it has no head.
    Raises:
        KerassegError: If it is no such model, or its head sees several maps.
    """
    functional = isinstance(classifier, keras.Model) and hasattr(classifier, "operations")
    if not functional or isinstance(classifier, keras.Sequential):
        raise KerassegError(
            f"received a {type(classifier).__name__}, expected a functional keras.Model, e.g. keras.Model(net.inputs, net.outputs)"
        )
    if len(classifier.inputs) != 1 or len(classifier.outputs) != 1:
        raise KerassegError(
            f"{classifier.name} has {len(classifier.inputs)} inputs and {len(classifier.outputs)} outputs; expected one of each, "
            "e.g. keras.Model(net.inputs[0], net.outputs[0])"
        )
    output = classifier.outputs[0]
    if len(output.shape) == 4:
        return classifier
    maps, waiting = {}, [output]
    while waiting:
        op = waiting.pop()._keras_history.operation
        inputs = [] if isinstance(op, keras.layers.InputLayer) else keras.tree.flatten(op.input)
        if isinstance(op, _ENDS_OF_MAPS) and len(inputs[0].shape) == 4 and inputs[0].shape[1:3] != (1, 1):
            maps[id(inputs[0])] = inputs[0]
        else:
            waiting.extend(inputs)
    if len(maps) != 1:
        raise KerassegError(f"the head of {classifier.name} sees {len(maps)} maps instead of 1; build it with include_top=False")
    return keras.Model(classifier.input, next(iter(maps.values())), name=classifier.name)


def _plan(trunk: keras.Model, target: int) -> tuple[dict[Any, Step], Place]:
    """Says for each operation what takes its place, and where the end stands."""
    places, steps = {id(trunk.inputs[0]): Place(1)}, {}
    for op in trunk.operations:
        if isinstance(op, keras.layers.InputLayer):
            continue
        rule, inputs = rule_of(op), keras.tree.flatten(op.input)
        # Keras tells only of a layer's first call.
        if any(id(tensor) not in places for tensor in inputs):
            refuse(op, "or one before it is called more than once")
        steps[op] = step = rule(op, [places[id(tensor)] for tensor in inputs], target)
        places.update((id(tensor), step.place) for tensor in keras.tree.flatten(op.output))
    if id(trunk.outputs[0]) not in places:
        refuse(op, "is called more than once")
    return steps, places[id(trunk.outputs[0])]


def _check_sizes(extractor: keras.Model, trunk: keras.Model, rate: int) -> None:
    """Demands of the finished graph, not of the plan, that every `rate`-th cell is one of the classifier's, and none is missing."""
    _, *sizes, channels = trunk.inputs[0].shape
    # A classifier that was built for one size is asked about that.
    shape = (1, *(own or trial for own, trial in zip(sizes, _TRIAL_SIZES, strict=True)), channels)
    try:
        coarse = trunk.compute_output_shape(shape)[1:3]
    except ValueError as error:
        # Keras builds NASNet without an error and without the layers that it needs.
        raise KerassegError(
            f"{trunk.name} itself does not run at {shape[1:3]}: build it for a fixed input_shape, or take another"
        ) from error
    levels = extractor.compute_output_shape(shape)
    dense = levels[max(levels, key=int)][1:3]
    if any(-(-cells // rate) != expected for cells, expected in zip(dense, coarse, strict=True)):
        raise KerassegError(
            f"{trunk.name} at {shape[1:3]} has {coarse} cells, but every {rate}th of its dense form's {dense} are not as many: "
            "no dense form of it is known to be exact"
        )
