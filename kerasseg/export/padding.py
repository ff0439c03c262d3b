"""Maps of a frozen graph that are surrounded by the lowest number there is, surrounded by zeros instead.

Max pooling pads with the lowest number where its window may lie half outside the map. A quantised tensor's range would have to
hold that number, and XNNPACK takes no such padding. Where the map has no negative value and what follows takes maxima, zeros
give the same result, bit for bit.
"""

from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import tensor_util

# Operations whose result has no negative value, whatever they are given.
_NEVER_NEGATIVE = {"Relu", "Relu6", "Sigmoid", "Softmax", "Softplus", "Abs", "Exp", "Square", "Sqrt"}
# Those that make no negative value of maps without one; all maps they are given count.
_KEEPING = {
    *("MaxPool", "AvgPool", "Mean", "Max", "LRN", "AddV2", "Add", "AddN", "Mul", "ConcatV2", "Identity", "StopGradient", "Cast"),
    *("Pad", "PadV2", "MirrorPad", "Slice", "StridedSlice", "GatherV2", "Reshape", "Transpose", "Squeeze"),
    *("ResizeBilinear", "ResizeNearestNeighbor", "DepthToSpace", "SpaceToDepth"),
}
# How many of their inputs are maps; the others say where and how much. Of those not here, all.
_MAPS = dict.fromkeys(
    ("Pad", "PadV2", "MirrorPad", "Slice", "StridedSlice", "GatherV2", "Reshape", "Transpose", "Mean", "Max"), 1
) | dict.fromkeys(("ResizeBilinear", "ResizeNearestNeighbor"), 1)
# What may lie between the padding and the maximum.
_BETWEEN = {"Slice", "StridedSlice", "Identity"}
_LOWEST = -1e30


class _Graph:
    """A graph's operations by name, and who reads their results."""

    def __init__(self, graph: GraphDef):
        self.nodes = {node.name: node for node in graph.node}
        self.readers: dict[str, list[NodeDef]] = {}
        self._known: dict[str, bool] = {}
        for node in graph.node:
            for source in self.sources(node):
                self.readers.setdefault(source.name, []).append(node)

    def sources(self, node: NodeDef) -> list[NodeDef]:
        return [self.nodes[name.split(":")[0]] for name in node.input if not name.startswith("^")]

    def constant(self, node: NodeDef):
        return tensor_util.MakeNdarray(node.attr["value"].tensor) if node.op == "Const" else None

    def never_negative(self, node: NodeDef) -> bool:
        if node.name not in self._known:
            # Padding asks what its readers read: of what is asked for on its own account nothing is known, and the number stays.
            self._known[node.name] = False
            self._known[node.name] = self._is_never_negative(node)
        return self._known[node.name]

    def _is_never_negative(self, node: NodeDef) -> bool:
        if node.op in _NEVER_NEGATIVE:
            return True
        if node.op == "Const":
            return bool((self.constant(node) >= 0).all())
        sources = self.sources(node)
        if node.op == "Maximum":
            return any(map(self.never_negative, sources))
        if node.op == "ConcatV2":
            sources = sources[:-1]
        if node.op == "PadV2" and not self._pads_without_negatives(node):
            return False
        return node.op in _KEEPING and bool(sources) and all(map(self.never_negative, sources[: _MAPS.get(node.op)]))

    def _pads_without_negatives(self, node: NodeDef) -> bool:
        value = self.constant(self.sources(node)[2])
        # The lowest number around a map is gone after the maxima: `pads_for_maxima` looks at who reads it.
        return value is not None and (float(value) >= 0 or self.pads_for_maxima(node))

    def pads_for_maxima(self, node: NodeDef) -> bool:
        value = self.constant(self.sources(node)[2]) if node.op == "PadV2" else None
        return value is not None and float(value) <= _LOWEST and self._ends_in_maxima(node)

    def _ends_in_maxima(self, node: NodeDef) -> bool:
        readers = self.readers.get(node.name, [])
        return bool(readers) and all(map(self._takes_maxima, readers))

    def _takes_maxima(self, reader: NodeDef) -> bool:
        if reader.op == "Maximum":
            # The other map may be below zero where this one is padding, and is then the larger one.
            return all(map(self._is_zero_or_padding, self.sources(reader)))
        return reader.op == "MaxPool" or (reader.op in _BETWEEN and self._ends_in_maxima(reader))

    def _is_zero_or_padding(self, node: NodeDef) -> bool:
        """Whether every value is at least zero, or the lowest number."""
        sources = self.sources(node)
        if node.op == "PadV2" and (value := self.constant(sources[2])) is not None and float(value) <= _LOWEST:
            return self.never_negative(sources[0])
        if node.op in _BETWEEN:
            return self._is_zero_or_padding(sources[0])
        if node.op == "Maximum":
            return all(map(self._is_zero_or_padding, sources))
        return self.never_negative(node)


def pad_with_zeros(graph: GraphDef) -> int:
    """Replaces the lowest number around maps without negative values by zeros, where maxima are all that is taken of them.

    Args:
        graph: Of a frozen function, no calls in it; changed.
    Returns:
        How many operations were changed.
    """
    known = _Graph(graph)
    found = [node for node in graph.node if known.pads_for_maxima(node) and known.never_negative(known.sources(node)[0])]
    for node in found:
        node.op = "Pad"
        del node.input[2]
    return len(found)
