"""Compression as one call of `gridpool::StGridPool`, an ONNX local function whose body is the plain operators.

    tokens [T, H, W, D] -> compress/ptg/…, compress/nsp/… -> [T, H', W', D]
    becomes   StGridPool(tokens)  {plan, temperature, order, …, plugin_namespace="gridpool", plugin_version="1"}

Nothing is decided here: ONNX Runtime, TensorRT-RTX and a TensorRT without the plugin run the body, which is the nodes as they were; a
TensorRT with a registered plugin of that name uses it instead (plugins/tensorrt). Parsers before ENABLE_PLUGIN_OVERRIDE (TensorRT
10.13 and older) always use the body: `plugins.tensorrt.drop_body` makes the graph for them. OpenVINO (2026.4) reads no local
functions: `onnx.inliner` gives it the plain nodes back.

What the kernel does not cover stays as it is, and the note says why. After this pass nothing between the two tensors has a name in the
graph: it comes last, after stages have been compared.

T frames, H, W patch rows and columns, D hidden, H', W' windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.context import Context
from export.surgeon.graph import is_output, static_shape, unique
from plugins.op import DOMAIN, NAME, VERSION, StGridPool, attributes_of, not_covered, output_shape, spec_from_text
from plugins.plan import make_plan
from runtime.core.errors import SpecError

NODE = "compress/StGridPool"
_STAGES = ("compress/ptg/", "compress/nsp/")


@dataclass(frozen=True)
class _Call:
    """The nodes that a call replaces, what they read and make, and the op that computes it."""

    region: Sequence[gs.Node]
    source: gs.Tensor
    result: gs.Tensor
    spec: StGridPool


def run(graph: gs.Graph, context: Context) -> int:
    """1 where compression has become a call, else 0; `check` says why."""
    call = _find_call(graph, context)
    if isinstance(call, str):
        return 0
    _replace(graph, call)
    return 1


def check(graph: gs.Graph, context: Context) -> str:
    """Whether a plugin can replace compression, or why not."""
    if any((node.domain, node.op) == (DOMAIN, NAME) for node in graph.nodes):
        return f"{len(graph.functions[-1].nodes)} nodes are the body of {DOMAIN}::{NAME}, which a TensorRT plugin may replace"
    return f"compression stays plain nodes: {_find_call(graph, context)}"


def _find_call(graph: gs.Graph, context: Context) -> _Call | str:
    """The call that can replace the stages' nodes, or the reason why none can."""
    region = [node for node in graph.nodes if node.name.startswith(_STAGES)]
    try:
        spec = spec_from_text(context.compression)
    except SpecError as error:
        return str(error)
    if not region:
        return "there are no nodes of the stages ptg and nsp"
    inside = {id(node) for node in region}
    entering = unique(
        tensor
        for node in region
        for tensor in node.inputs
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty() and all(id(maker) not in inside for maker in tensor.inputs)
    )
    leaving = [
        tensor
        for node in region
        for tensor in node.outputs
        if is_output(graph, tensor) or any(id(reader) not in inside for reader in unique(tensor.outputs))
    ]
    if len(entering) != 1 or len(leaving) != 1:
        return f"{len(entering)} tensors enter the stages and {len(leaving)} leave them; expected one of each"
    (source,), (result,) = entering, leaving
    shape = static_shape(source)
    if shape is None or source.dtype is None:
        return f"the shape or dtype of {source.name} is not known"
    reason = not_covered(spec, shape, np.dtype(source.dtype).name)
    if reason:
        return reason
    if static_shape(result) != output_shape(spec, shape) or result.dtype != source.dtype:
        return f"the stages make {result.shape} of {source.shape}, not what {spec} makes of it"
    return _Call(region, source, result, spec)


def _replace(graph: gs.Graph, call: _Call) -> None:
    attributes = attributes_of(call.spec) | {
        "plan": list(make_plan(call.spec, *call.source.shape[:3]).ints),
        "plugin_namespace": DOMAIN,
        "plugin_version": VERSION,
    }
    graph.functions.append(_body(graph, call, list(attributes)))
    position = next(index for index, node in enumerate(graph.nodes) if node is call.region[-1])
    node = gs.Node(NAME, NODE, attributes, [call.source], domain=DOMAIN)
    for replaced in call.region:
        replaced.inputs.clear()
        replaced.outputs.clear()
    node.outputs = [call.result]
    graph.nodes.insert(position + 1, node)
    graph.cleanup()


def _body(graph: gs.Graph, call: _Call, attributes: list[str]) -> gs.Function:
    """Copies of the nodes and of the constants that they read, between an input and an output of the same names."""
    local: dict[int, gs.Tensor] = {}

    def copy(tensor: gs.Tensor) -> gs.Tensor:
        if tensor.is_empty():
            return gs.Variable.empty()
        if id(tensor) not in local:
            local[id(tensor)] = tensor.copy()
        return local[id(tensor)]

    nodes = [
        gs.Node(node.op, node.name, dict(node.attrs), [*map(copy, node.inputs)], [*map(copy, node.outputs)], domain=node.domain)
        for node in call.region
    ]
    return gs.Function(
        NAME,
        DOMAIN,
        nodes,
        [copy(call.source)],
        [copy(call.result)],
        opset=graph.opset,
        import_domains=graph.import_domains,
        attrs=dict.fromkeys(attributes),
        ir_version=graph.ir_version,
    )
