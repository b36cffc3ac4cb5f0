"""The frame-wise part of the vision graph as an ONNX Loop over single frames: what a CPU runs.

    pixel_values [T, 3, h, w] -> encoder, projector -> compress
    becomes   Loop(T): Gather frame i -> encoder, projector at batch 1 -> stacked again -> compress

Matrix products over one frame keep their activations in the cache, and a frame's attention scores are 1/T of the clip's. Measured on
one SigLIP-so400m block at T=32, two threads: 235 ms per 4 frames against 315, 0.5 GB peak against 2.2. A GPU runs the batch faster,
so this pass runs only on request. Weights stay initializers of the outer graph.

What goes into the loop follows from the graph: the nodes that an input with a frame axis feeds, as long as they keep the frames apart
(RULES, by static shapes), up to the `compress` scope. Tensors that are read outside, or are graph outputs, are stacked under their
names; a part without a MatMul or Conv is left as it is.

T frames; a framed tensor is [T * k, …] with a frame's k rows side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context, free_name, leaving, small_value, static_shape

# fmt: off
_POINTWISE = {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "Log", "Max", "Min", "Mul", "Neg", "Pow", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
}
# fmt: on
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_HEAVY = {"MatMul", "Gemm", "Conv", "Attention"}
_BY_AXIS_ATTRIBUTE = {"LayerNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "Concat": 0, "Split": 0, "Gather": 0}


def run(graph: gs.Graph, context: Context) -> int:
    """Move the frame-wise part into a Loop; counts the nodes moved."""
    inputs = [tensor for tensor in graph.inputs if (shape := static_shape(tensor)) and len(shape) > 1 and shape[0] > 1]
    if not inputs:
        return 0
    frames = inputs[0].shape[0]
    inputs = [tensor for tensor in inputs if tensor.shape[0] == frames]
    region = _without_views_at_the_end(graph, _region(graph, inputs, frames))
    if not any(node.op in _HEAVY for node in region):
        return 0
    _move(graph, region, inputs, frames)
    return len(region)


def check(graph: gs.Graph, context: Context) -> str:
    loops = [node for node in graph.nodes if node.op == "Loop"]
    if not loops:
        return "no frame-wise part"
    return f"{len(loops[0].attrs['body'].nodes)} nodes run frame by frame, {len(graph.nodes) - 1} on the clip"


def _region(graph: gs.Graph, inputs: list[gs.Tensor], frames: int) -> list[gs.Node]:
    framed = {tensor.name for tensor in inputs}
    region = []
    for node in graph.nodes:
        data = [tensor for tensor in node.inputs if tensor.name in framed]
        others = [tensor for tensor in node.inputs if tensor.name not in framed and not tensor.is_empty()]
        if not data or node.name.startswith("compress/") or not all(_is_stored(tensor) for tensor in others):
            continue
        shapes = [static_shape(tensor) for tensor in [*data, *node.outputs]]
        if any(not shape or shape[0] % frames for shape in shapes):
            continue
        rule = RULES.get(node.op)
        if rule is not None and rule(node, framed):
            region.append(node)
            framed |= {tensor.name for tensor in node.outputs}
    return region


def _is_stored(tensor: gs.Tensor) -> bool:
    """Whether it is a constant, or a weight in Q/DQ."""
    if isinstance(tensor, gs.Constant):
        return True
    made = [node for node in tensor.inputs if node.op == "DequantizeLinear"]
    return bool(made) and all(isinstance(operand, gs.Constant) for operand in made[0].inputs)


def _without_views_at_the_end(graph: gs.Graph, region: list[gs.Node]) -> list[gs.Node]:
    """Without a Reshape whose result only leaves the loop: it costs nothing outside, and inside it would be a second stacked copy."""
    inside = {id(node) for node in region}
    for node in reversed(region):
        leaves = all(id(reader) not in inside for tensor in node.outputs for reader in tensor.outputs)
        if node.op in _VIEWS and leaves and not any(tensor in graph.outputs for tensor in node.outputs):
            inside.discard(id(node))
    return [node for node in region if id(node) in inside]


def _move(graph: gs.Graph, region: list[gs.Node], inputs: list[gs.Tensor], frames: int) -> None:
    prefix = "vision/frames"

    def variable(name: str, dtype: np.dtype, shape: Sequence[int] = ()) -> gs.Variable:
        return gs.Variable(free_name(graph, name), dtype, list(shape))

    def constant(name: str, value: Any) -> gs.Constant:
        return gs.Constant(free_name(graph, name), np.array(value))

    number = variable(f"{prefix}/number", np.dtype(np.int64))
    go_on = variable(f"{prefix}/condition", np.dtype(bool))
    goes_on = variable(f"{prefix}/condition/output", np.dtype(bool))
    nodes = [gs.Node("Identity", f"{prefix}/condition", inputs=[go_on], outputs=[goes_on])]
    axis = constant(f"{prefix}/axis", [0])
    local: dict[str, gs.Tensor] = {}  # name of a tensor: what it is for one frame
    for tensor in inputs:
        picked = variable(f"{prefix}/{tensor.name}/Gather", tensor.dtype, tensor.shape[1:])
        frame = variable(f"{prefix}/{tensor.name}", tensor.dtype, [1, *tensor.shape[1:]])
        nodes.append(gs.Node("Gather", picked.name, {"axis": 0}, [tensor, number], [picked]))
        nodes.append(gs.Node("Unsqueeze", frame.name, inputs=[picked, axis], outputs=[frame]))
        local[tensor.name] = frame

    left = leaving(graph, region)
    for node in region:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Variable) and tensor.name and tensor.name not in local:
                # a weight is dequantised where it is used: an engine looks for both in one graph
                local[tensor.name] = variable(f"{tensor.name}/frame", tensor.dtype, tensor.shape)
                nodes.append(tensor.inputs[0].copy(tensor.inputs[0].inputs, [local[tensor.name]]))
        for tensor in node.outputs:
            name = free_name(graph, f"{tensor.name}/frame") if tensor in left else tensor.name
            local[tensor.name] = gs.Variable(name, tensor.dtype, [tensor.shape[0] // frames, *tensor.shape[1:]])
        operands = [local.get(tensor.name, tensor) for tensor in node.inputs]
        if node.op in ("Reshape", "Expand"):
            operands[1] = constant(f"{node.name}/frame/shape", local[node.outputs[0].name].shape)
        nodes.append(node.copy(operands, [local[tensor.name] for tensor in node.outputs]))

    always = constant(f"{prefix}/always", True)  # TensorRT's parser requires a condition
    loop = gs.Node("Loop", free_name(graph, prefix), inputs=[constant(f"{prefix}/count", frames), always])
    results, after = [], []
    for tensor in left:
        rows, *rest = local[tensor.name].shape
        tensor.inputs.clear()
        if rows == 1:  # [1, …] of a frame -> […], which the loop stacks to [T, …]
            result = variable(f"{tensor.name}/squeezed", tensor.dtype, rest)
            nodes.append(gs.Node("Squeeze", result.name, inputs=[local[tensor.name], axis], outputs=[result]))
            loop.outputs.append(tensor)
        else:
            result = local[tensor.name]
            stack = variable(f"{tensor.name}/stacked", tensor.dtype, [frames, rows, *rest])
            shape = constant(f"{tensor.name}/shape", tensor.shape)
            after.append(gs.Node("Reshape", free_name(graph, f"{tensor.name}/Reshape"), inputs=[stack, shape], outputs=[tensor]))
            loop.outputs.append(stack)
        results.append(result)
    loop.attrs["body"] = gs.Graph(
        nodes, [number, go_on], [goes_on, *results], name="frame", opset=graph.opset, import_domains=graph.import_domains
    )
    position = graph.nodes.index(region[0])
    graph.nodes[position:position] = [loop, *after]
    graph.cleanup(
        recurse_subgraphs=False
    )  # graph-surgeon compares nodes by value: it can't tell those of the body from the originals


# RULES: operator -> whether it keeps the frames of its framed inputs apart; other inputs are constants, and the first dimension of
# framed tensors is a multiple of T.


def _pointwise(node: gs.Node, framed: set[str]) -> bool:
    shape = tuple(node.outputs[0].shape)
    for tensor in (tensor for tensor in node.inputs if not tensor.is_empty()):
        operand = static_shape(tensor)
        if operand is None:
            return False
        if tensor.name in framed:
            if len(operand) != len(shape) or operand[0] != shape[0]:
                return False
        elif len(operand) == len(shape) and operand[0] != 1:
            return False
    return True


def _matmul(node: gs.Node, framed: set[str]) -> bool:
    left, right = (static_shape(tensor) for tensor in node.inputs)
    if left is None or right is None or min(len(left), len(right)) < 2:
        return False
    if node.inputs[0].name not in framed:  # a constant matrix times one of each frame
        return len(right) > 2 and (len(left) == 2 or (len(left) == len(right) and left[0] == 1))
    if node.inputs[1].name in framed:
        return len(left) == len(right) > 2 and left[0] == right[0]
    return len(right) <= 2 or (len(right) == len(left) and right[0] == 1)


def _gemm(node: gs.Node, framed: set[str]) -> bool:
    bias = static_shape(node.inputs[2]) if len(node.inputs) > 2 else ()
    row_wise = not node.attrs.get("transA", 0) and bias is not None and (len(bias) < 2 or bias[0] == 1)
    return row_wise and _only_first(node, framed)


def _only_first(node: gs.Node, framed: set[str]) -> bool:
    return [tensor.name in framed for tensor in node.inputs] == [True] + [False] * (len(node.inputs) - 1)


def _attention(node: gs.Node, framed: set[str]) -> bool:
    present = [tensor for tensor in node.inputs if not tensor.is_empty()]
    return len(present) == 3 and all(tensor.name in framed for tensor in present) and len(node.outputs) == 1


def _other_axis(node: gs.Node, framed: set[str]) -> bool:
    rank = len(node.inputs[0].shape)
    if node.op == "Concat":
        return all(tensor.name in framed for tensor in node.inputs) and node.attrs["axis"] % rank != 0
    return _only_first(node, framed) and node.attrs.get("axis", _BY_AXIS_ATTRIBUTE[node.op]) % rank != 0


def _other_axes(node: gs.Node, framed: set[str]) -> bool:
    """Operators whose axes are an input: the second (Reduce*, Squeeze, Unsqueeze) or the fourth (Slice)."""
    index = 3 if node.op == "Slice" else 1
    axes = small_value(node.inputs[index]) if len(node.inputs) > index else None
    rank = len(node.outputs[0].shape if node.op == "Unsqueeze" else node.inputs[0].shape)
    return axes is not None and axes.size > 0 and _only_first(node, framed) and bool(np.all(axes % rank != 0))


def _same_rows(node: gs.Node, framed: set[str]) -> bool:
    return _only_first(node, framed) and node.inputs[0].shape[0] == node.outputs[0].shape[0]


RULES: dict[str, Callable[[gs.Node, set[str]], bool]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_BY_AXIS_ATTRIBUTE, _other_axis),
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "Squeeze", "Unsqueeze", "Slice"), _other_axes
    ),
    **dict.fromkeys(("Conv", "AveragePool", "MaxPool", "Expand"), _same_rows),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
    "Transpose": lambda node, framed: node.attrs.get("perm", [-1])[0] == 0,
    "Reshape": _only_first,  # frames are one after the other in memory, and [T * k, …] stays [T * k', …]
    "Flatten": lambda node, framed: node.attrs.get("axis", 1) != 0,
}
