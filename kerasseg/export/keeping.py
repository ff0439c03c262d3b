"""Which operations of a TFLite file 8 bits would ruin: a rule over the file's graph, whatever network it came from."""

from collections.abc import Callable

from ai_edge_litert.tools import flatbuffer_utils

# What brings scores to the image's size, puts them together or reads the class off them, without making new ones.
_TAIL = {
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "STRIDED_SLICE", "PAD", "PADV2", "MIRROR_PAD", "BROADCAST_TO"),
    *("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "RESHAPE", "TRANSPOSE", "CONCATENATION", "GATHER", "GATHER_ND", "CAST"),
    *("ARG_MAX", "SOFTMAX", "LOG_SOFTMAX"),
}
# Which cell of a map is the largest, and what the map goes through on the way there.
_COMPARISONS = {"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "EQUAL", "NOT_EQUAL"}
_CHOOSING = {"SLICE", "STRIDED_SLICE", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM", "SPLIT"}
# Products with constant matrices, which is how a map is resized with aligned corners; convolutions are others.
_PRODUCTS = {"FULLY_CONNECTED", "BATCH_MATMUL"}
_FLOAT = flatbuffer_utils.TensorType.FLOAT32
_CODES = {code: name for name, code in vars(flatbuffer_utils.BuiltinOperator).items() if not name.startswith("_")}


class Operations:
    """The operations of a TFLite file in the order in which they run.

    Args:
        content: The file's content.
    """

    def __init__(self, content: bytes):
        model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        graph = model.subgraphs[0]
        self._operators, self._tensors = graph.operators, graph.tensors
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        codes = map(flatbuffer_utils.get_builtin_code_from_operator_code, model.operatorCodes)
        names = [_CODES[code] for code in codes]
        self.kinds = [names[operator.opcodeIndex] for operator in self._operators]
        self.maker = {tensor: index for index, operator in enumerate(self._operators) for tensor in operator.outputs}

    def __len__(self) -> int:
        return len(self.kinds)

    def given(self, index: int) -> list[int]:
        """Which tensors an operation takes; an input that it could have and has not is none."""
        return [tensor for tensor in self._operators[index].inputs if tensor >= 0]

    def made(self, index: int) -> list[int]:
        """Which tensors it makes."""
        return list(self._operators[index].outputs)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        shape = self._tensors[tensor].shape
        return tuple(int(side) for side in shape) if shape is not None else ()

    def name(self, tensor: int) -> str:
        """A tensor's name."""
        return self._tensors[tensor].name.decode()

    def scope(self, index: int) -> str:
        """What ai-edge-quantizer calls an operation: the names of what it makes."""
        return "".join(f"{self.name(tensor)};" for tensor in self.made(index))

    def is_float(self, index: int) -> bool:
        """Whether it computes in float32: of what it takes (a comparison makes no numbers), or to what it makes."""
        taken = [tensor for tensor in self.given(index) if tensor in self.maker or tensor in self.inputs]
        return any(self._tensors[tensor].type == _FLOAT for tensor in taken + self.made(index))

    def activations(self) -> list[int]:
        """The tensors that are computed, and the inputs: all but constants."""
        return sorted({*self.inputs, *self.maker})


def kept_in_float(operations: Operations) -> set[int]:
    """Finds what a file of 8 bits keeps in float.

    - The last scores: whatever makes them (a convolution, say), and what behind it only adds, resizes, crops and takes the largest
      of several scales. Rounded before the largest class is found, near ones would be equal; where a file gives the scores
      themselves in 8 bits, they are rounded once instead of twice.
    - A map whose cells are compared, as for the switches of unpooling, and what makes it: of cells that are equal in 8 bits, the
      larger one cannot be told.
    - The average over a whole map, and what is computed of it as long as it is one cell: few numbers, each of which is everywhere.

    Args:
        operations: Of the file in float32.
    Returns:
        Indices of operations.
    """
    return _scores(operations) | _compared(operations) | _whole_map(operations)


def _scores(operations: Operations) -> set[int]:
    def passes(index: int) -> bool:
        kind = operations.kinds[index]
        return kind in _TAIL or (kind in _PRODUCTS and _is_resizing(operations, index))

    return _back_from(operations, operations.outputs, passes)


def _compared(operations: Operations) -> set[int]:
    comparing = [index for index, kind in enumerate(operations.kinds) if kind in _COMPARISONS]
    tensors = [tensor for index in comparing for tensor in operations.given(index)]
    return set(comparing) | _back_from(operations, tensors, lambda index: operations.kinds[index] in _CHOOSING)


def _back_from(operations: Operations, tensors: list[int], passes: Callable[[int], bool]) -> set[int]:
    """What makes some tensors: those operations that pass maps on, and the first behind them that make something new."""
    found, waiting = set(), list(tensors)
    while waiting:
        index = operations.maker.get(waiting.pop())
        if index is None or index in found:
            continue
        found.add(index)
        if passes(index):
            waiting += operations.given(index)
    return found


def _is_resizing(operations: Operations, index: int) -> bool:
    """A dense layer makes as many channels as it has units; a product along a side leaves the map's other sides as they were."""
    # The product stands between transpositions, which have put the side last.
    return any(operations.kinds[maker] in ("TRANSPOSE", "RESHAPE") for maker in _makers(operations, index))


def _makers(operations: Operations, index: int) -> list[int]:
    return [operations.maker[tensor] for tensor in operations.given(index) if tensor in operations.maker]


def _whole_map(operations: Operations) -> set[int]:
    kept: set[int] = set()
    for index in range(len(operations)):
        (shape, *_) = map(operations.shape, operations.made(index))
        if not _is_cell(shape):
            continue
        averages = operations.kinds[index] in ("MEAN", "AVERAGE_POOL_2D") and not _is_cell(
            operations.shape(operations.given(index)[0])
        )
        if averages or kept & set(_makers(operations, index)):
            kept.add(index)
    return kept


def _is_cell(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 4) and all(side == 1 for side in shape[1:-1])
