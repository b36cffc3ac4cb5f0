"""GatherND with constant indices -> Slice or Gather, which TensorRT fuses and runs without an index computation per element.

GatherND reads whole slices at index tuples over the leading axes. Constant tuples are constant offsets once those axes are
merged, so: one leading axis is a Gather; several, or batch axes, are a Reshape and a Gather; offsets that are one
ascending run are a Slice. GatherND with indices that are known only at run time stays, TensorRT takes it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import free_name, replace_node, small_value, static_shape


def run(graph: gs.Graph) -> int:
    """Replace what can be replaced; counts GatherND nodes."""
    return sum(_replace(graph, node) for node in list(graph.nodes) if node.op == "GatherND")


def check(graph: gs.Graph) -> str:
    left = sum(node.op == "GatherND" for node in graph.nodes)
    return f"{left} GatherND with indices of run time left" if left else "no GatherND"


def _replace(graph: gs.Graph, node: gs.Node) -> bool:
    data, result = node.inputs[0], node.outputs[0]
    indices, shape = small_value(node.inputs[1]), static_shape(data)
    if indices is None or shape is None:
        return False
    batch, depth = node.attrs.get("batch_dims", 0), indices.shape[-1]
    leading = shape[: batch + depth]
    offsets = offsets_of(indices, leading, batch)
    nodes: list[gs.Node] = []
    if len(leading) > 1:
        rest = shape[len(leading) :]
        merged = gs.Variable(free_name(graph, f"{node.name}/merged"), data.dtype, [int(np.prod(leading)), *rest])
        target = gs.Constant(free_name(graph, f"{node.name}/merged/shape"), np.array(merged.shape, np.int64))
        nodes.append(gs.Node("Reshape", free_name(graph, f"{node.name}/Reshape"), inputs=[data, target], outputs=[merged]))
        data = merged
    flat = offsets.ravel()
    if offsets.ndim == 1 and flat.size and np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
        values = {"starts": flat[:1], "ends": flat[:1] + flat.size, "axes": np.zeros(1, np.int64)}
        bounds = [gs.Constant(free_name(graph, f"{node.name}/{name}"), value.astype(np.int64)) for name, value in values.items()]
        nodes.append(gs.Node("Slice", free_name(graph, f"{node.name}/Slice"), inputs=[data, *bounds]))
    else:
        table = gs.Constant(free_name(graph, f"{node.name}/offsets"), offsets)
        nodes.append(gs.Node("Gather", free_name(graph, f"{node.name}/Gather"), {"axis": 0}, [data, table]))
    if result.shape is None:
        result.shape = [*offsets.shape, *shape[len(leading) :]]
    replace_node(graph, node, nodes)
    return True


def offsets_of(indices: np.ndarray, leading: tuple[int, ...], batch: int = 0) -> np.ndarray:
    """Offsets [...] into the merged `leading` axes, of index tuples [..., k]; the first `batch` axes index themselves."""
    sizes = np.array(leading, np.int64)
    indices = np.where(indices < 0, indices + sizes[batch:], indices).astype(np.int64)
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).astype(np.int64)
    offsets = (indices * strides[batch:]).sum(-1)
    for axis in range(batch):
        along = [1] * offsets.ndim
        along[axis] = leading[axis]
        offsets = offsets + (np.arange(leading[axis]) * strides[axis]).reshape(along)
    return offsets
