"""ScatterND with constant indices -> Slice and Concat; no copy of the whole tensor, and no kernel of atomic writes.

ScatterND writes whole slices at index tuples over the leading axes. With those axes merged (a Reshape where there are
several) the result is a known sequence of rows of the data and rows of the updates: few runs of neighbouring rows become
Slices under one Concat, many become one Gather with a constant table over data and updates. A later update of the same row
wins. A `reduction`, or indices known only at run time, is left alone.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.gathernd import offsets_of
from export.surgeon.graph import free_name, replace_node, small_value, static_shape

_MAX_RUNS = 64  # a Concat of more pieces costs more than a Gather with a table


def run(graph: gs.Graph) -> int:
    """Replace what can be replaced; counts ScatterND nodes."""
    return sum(_replace(graph, node) for node in list(graph.nodes) if node.op == "ScatterND")


def check(graph: gs.Graph) -> str:
    left = sum(node.op == "ScatterND" for node in graph.nodes)
    return f"{left} ScatterND with indices of run time, or a reduction, left" if left else "no ScatterND"


def _replace(graph: gs.Graph, node: gs.Node) -> bool:
    data, updates = node.inputs[0], node.inputs[2]
    indices, shape = small_value(node.inputs[1]), static_shape(data)
    if indices is None or shape is None or indices.size == 0 or node.attrs.get("reduction", "none") != "none":
        return False
    depth = indices.shape[-1]
    rows, rest = int(np.prod(shape[:depth])), list(shape[depth:])
    offsets = offsets_of(indices, shape[:depth]).ravel()
    source = np.arange(rows)  # of each row of the result: a row of data, or `rows` + a row of the updates
    for update, row in enumerate(offsets):
        source[row] = rows + update

    build = _Builder(graph, node.name)
    if depth > 1:
        data = build.reshape(data, [rows, *rest])
    if indices.ndim != 2:
        updates = build.reshape(updates, [offsets.size, *rest])
    runs = np.split(source, np.flatnonzero(np.diff(source) != 1) + 1)
    if len(runs) <= _MAX_RUNS:
        pieces = []
        for first, count in ((int(run[0]), len(run)) for run in runs):
            tensor, start = (data, first) if first < rows else (updates, first - rows)
            whole = count == (rows if tensor is data else offsets.size)
            pieces.append(tensor if whole else build.rows(tensor, start, count, rest))
        build.node("Concat", pieces, {"axis": 0})
    else:
        both = build.node("Concat", [data, updates], {"axis": 0}, [rows + offsets.size, *rest])
        build.node("Gather", [both, build.constant("offsets", source)], {"axis": 0})
    if depth > 1:
        build.node("Reshape", [build.open([rows, *rest]), build.constant("shape", np.array(shape))])
    if node.outputs[0].shape is None:
        node.outputs[0].shape = list(shape)
    replace_node(graph, node, build.nodes)
    return True


class _Builder:
    """New nodes in order, called after the node that they replace."""

    def __init__(self, graph: gs.Graph, name: str):
        self.graph, self.name = graph, name
        self.nodes: list[gs.Node] = []
        self.taken: set[str] = set()

    def node(self, op: str, inputs: list[gs.Tensor], attrs: dict | None = None, shape: list[int] | None = None) -> gs.Tensor | None:
        """A node; its output where `shape` says what it makes, else none yet."""
        node = gs.Node(op, self._free(op), attrs, inputs)
        self.nodes.append(node)
        if shape is None:
            return None
        node.outputs = [gs.Variable(node.name, inputs[0].dtype, shape)]
        return node.outputs[0]

    def open(self, shape: list[int]) -> gs.Tensor:
        """Give the last node, which has none yet, an output."""
        last = self.nodes[-1]
        last.outputs = [gs.Variable(last.name, last.inputs[0].dtype, shape)]
        return last.outputs[0]

    def reshape(self, tensor: gs.Tensor, shape: list[int]) -> gs.Tensor:
        return self.node("Reshape", [tensor, self.constant("shape", np.array(shape))], shape=shape)

    def rows(self, tensor: gs.Tensor, start: int, count: int, rest: list[int]) -> gs.Tensor:
        bounds = [
            self.constant(name, np.array([value])) for name, value in (("starts", start), ("ends", start + count), ("axes", 0))
        ]
        return self.node("Slice", [tensor, *bounds], shape=[count, *rest])

    def constant(self, role: str, value: np.ndarray) -> gs.Constant:
        return gs.Constant(self._free(role), value.astype(np.int64))

    def _free(self, part: str) -> str:
        wanted = f"{self.name}/{part}"
        name = free_name(self.graph, wanted)
        count = 1
        while name in self.taken:
            count += 1
            name = free_name(self.graph, f"{wanted}_{count}")
        self.taken.add(name)
        return name
