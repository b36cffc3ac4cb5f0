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

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.context import Context
from export.surgeon.graph import free_name, is_output, small_value, static_shape, unique

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
    framed = {id(tensor) for tensor in inputs}
    region = []
    for node in graph.nodes:
        data = [tensor for tensor in node.inputs if id(tensor) in framed]
        others = [tensor for tensor in node.inputs if id(tensor) not in framed and not tensor.is_empty()]
        if not data or node.name.startswith("compress/") or not all(_is_stored(tensor) for tensor in others):
            continue
        shapes = [static_shape(tensor) for tensor in [*data, *node.outputs]]
        if any(not shape or shape[0] % frames for shape in shapes):
            continue
        rule = RULES.get(node.op)
        if rule is not None and rule(node, framed):
            region.append(node)
            framed |= {id(tensor) for tensor in node.outputs}
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
        if node.op in _VIEWS and leaves and not any(is_output(graph, tensor) for tensor in node.outputs):
            inside.discard(id(node))
    return [node for node in region if id(node) in inside]


def _move(graph: gs.Graph, region: list[gs.Node], inputs: list[gs.Tensor], frames: int) -> None:
    inside = {id(node) for node in region}
    leaving = [
        tensor
        for node in region
        for tensor in node.outputs
        if is_output(graph, tensor) or any(id(reader) not in inside for reader in unique(tensor.outputs))
    ]
    position = next(index for index, node in enumerate(graph.nodes) if id(node) in inside)
    prefix = "vision/frames"

    number = gs.Variable(free_name(graph, f"{prefix}/number"), np.dtype(np.int64), [])
    go_on = gs.Variable(free_name(graph, f"{prefix}/condition"), np.dtype(bool), [])
    goes_on = gs.Variable(free_name(graph, f"{prefix}/condition/output"), np.dtype(bool), [])
    body_nodes = [gs.Node("Identity", f"{prefix}/condition", inputs=[go_on], outputs=[goes_on])]
    axis = gs.Constant(free_name(graph, f"{prefix}/axis"), np.zeros(1, np.int64))
    local: dict[int, gs.Tensor] = {}
    for tensor in inputs:
        rest = list(tensor.shape[1:])
        picked = gs.Variable(free_name(graph, f"{prefix}/{tensor.name}/Gather"), tensor.dtype, rest)
        frame = gs.Variable(free_name(graph, f"{prefix}/{tensor.name}"), tensor.dtype, [1, *rest])
        body_nodes.append(gs.Node("Gather", picked.name, {"axis": 0}, [tensor, number], [picked]))
        body_nodes.append(gs.Node("Unsqueeze", frame.name, inputs=[picked, axis], outputs=[frame]))
        local[id(tensor)] = frame

    for node in region:
        for tensor in node.inputs:
            if id(tensor) not in local and not isinstance(tensor, gs.Constant) and not tensor.is_empty():
                # a weight is dequantised where it is used: an engine looks for both in one graph
                (made,) = tensor.inputs
                local[id(tensor)] = gs.Variable(free_name(graph, f"{tensor.name}/frame"), tensor.dtype, tensor.shape)
                body_nodes.append(gs.Node(made.op, made.name, dict(made.attrs), list(made.inputs), [local[id(tensor)]]))
        for tensor in node.outputs:
            stays = all(tensor is not other for other in leaving)
            name = tensor.name if stays else free_name(graph, f"{tensor.name}/frame")
            local[id(tensor)] = gs.Variable(name, tensor.dtype, [tensor.shape[0] // frames, *tensor.shape[1:]])
        body_nodes.append(_for_one_frame(graph, node, local))

    loop = gs.Node("Loop", free_name(graph, prefix))
    loop.inputs = [  # TensorRT's parser requires the condition
        gs.Constant(free_name(graph, f"{prefix}/count"), np.array(frames, np.int64)),
        gs.Constant(free_name(graph, f"{prefix}/always"), np.array(True)),
    ]
    stacked, after = [], []
    for tensor in leaving:
        rows, rest = tensor.shape[0] // frames, list(tensor.shape[1:])
        frame = local[id(tensor)]
        tensor.inputs.clear()
        if rows == 1:  # [1, …] of a frame -> […], which the loop stacks to [T, …]
            flat = gs.Variable(free_name(graph, f"{tensor.name}/squeezed"), tensor.dtype, rest)
            body_nodes.append(gs.Node("Squeeze", flat.name, inputs=[frame, axis], outputs=[flat]))
            stacked.append(flat)
            loop.outputs.append(tensor)
        else:
            stack = gs.Variable(free_name(graph, f"{tensor.name}/stacked"), tensor.dtype, [frames, rows, *rest])
            shape = gs.Constant(free_name(graph, f"{tensor.name}/shape"), np.array(tensor.shape, np.int64))
            after.append(gs.Node("Reshape", free_name(graph, f"{tensor.name}/Reshape"), inputs=[stack, shape], outputs=[tensor]))
            stacked.append(frame)
            loop.outputs.append(stack)
    for node in region:
        node.inputs.clear()
        node.outputs.clear()
    loop.attrs["body"] = gs.Graph(
        body_nodes, [number, go_on], [goes_on, *stacked], name="frame", opset=graph.opset, import_domains=graph.import_domains
    )
    moved = {id(node) for node in graph.nodes if node.op == "DequantizeLinear" and _is_unread(graph, node)}
    before = [node for node in graph.nodes[:position] if id(node) not in inside | moved]
    graph.nodes[:] = [*before, loop, *after, *(node for node in graph.nodes[position:] if id(node) not in inside | moved)]


def _is_unread(graph: gs.Graph, node: gs.Node) -> bool:
    return not any(tensor.outputs or is_output(graph, tensor) for tensor in node.outputs)


def _for_one_frame(graph: gs.Graph, node: gs.Node, local: dict[int, gs.Tensor]) -> gs.Node:
    inputs = [local.get(id(tensor), tensor) for tensor in node.inputs]
    outputs = [local[id(tensor)] for tensor in node.outputs]
    if node.op in ("Reshape", "Expand"):
        inputs[1] = gs.Constant(free_name(graph, f"{node.name}/frame/shape"), np.array(outputs[0].shape, np.int64))
    return gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain)


# RULES: operator -> whether it keeps the frames of its framed inputs apart; other inputs are constants, and the first dimension of
# framed tensors is a multiple of T.


def _pointwise(node: gs.Node, framed: set[int]) -> bool:
    shape = tuple(node.outputs[0].shape)
    for tensor in (tensor for tensor in node.inputs if not tensor.is_empty()):
        operand = static_shape(tensor)
        if operand is None:
            return False
        if id(tensor) in framed:
            if len(operand) != len(shape) or operand[0] != shape[0]:
                return False
        elif len(operand) == len(shape) and operand[0] != 1:
            return False
    return True


def _matmul(node: gs.Node, framed: set[int]) -> bool:
    left, right = (static_shape(tensor) for tensor in node.inputs)
    if left is None or right is None or min(len(left), len(right)) < 2:
        return False
    if id(node.inputs[0]) not in framed:  # a constant matrix times one of each frame
        return len(right) > 2 and (len(left) == 2 or (len(left) == len(right) and left[0] == 1))
    if id(node.inputs[1]) in framed:
        return len(left) == len(right) > 2 and left[0] == right[0]
    return len(right) <= 2 or (len(right) == len(left) and right[0] == 1)


def _gemm(node: gs.Node, framed: set[int]) -> bool:
    bias = static_shape(node.inputs[2]) if len(node.inputs) > 2 else ()
    row_wise = not node.attrs.get("transA", 0) and bias is not None and (len(bias) < 2 or bias[0] == 1)
    return row_wise and _only_first(node, framed)


def _only_first(node: gs.Node, framed: set[int]) -> bool:
    return [id(tensor) in framed for tensor in node.inputs] == [True] + [False] * (len(node.inputs) - 1)


def _attention(node: gs.Node, framed: set[int]) -> bool:
    present = [tensor for tensor in node.inputs if not tensor.is_empty()]
    return len(present) == 3 and all(id(tensor) in framed for tensor in present) and len(node.outputs) == 1


def _other_axis(node: gs.Node, framed: set[int]) -> bool:
    rank = len(node.inputs[0].shape)
    if node.op == "Concat":
        return all(id(tensor) in framed for tensor in node.inputs) and node.attrs["axis"] % rank != 0
    return _only_first(node, framed) and node.attrs.get("axis", _BY_AXIS_ATTRIBUTE[node.op]) % rank != 0


def _other_axes(node: gs.Node, framed: set[int]) -> bool:
    """Operators whose axes are an input: the second (Reduce*, Squeeze, Unsqueeze) or the fourth (Slice)."""
    index = 3 if node.op == "Slice" else 1
    axes = small_value(node.inputs[index]) if len(node.inputs) > index else None
    rank = len(node.outputs[0].shape if node.op == "Unsqueeze" else node.inputs[0].shape)
    return axes is not None and axes.size > 0 and _only_first(node, framed) and bool(np.all(axes % rank != 0))


def _same_rows(node: gs.Node, framed: set[int]) -> bool:
    return _only_first(node, framed) and node.inputs[0].shape[0] == node.outputs[0].shape[0]


RULES: dict[str, Callable[[gs.Node, set[int]], bool]] = {
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
