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

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context, insert_after, leaving, static_shape
from plugins.op import DOMAIN, NAME, VERSION, StGridPool, attributes_of, not_covered, output_shape, spec_from_text
from plugins.plan import make_plan
from runtime.core.errors import SpecError

NODE = "compress/StGridPool"
_STAGES = ("compress/ptg/", "compress/nsp/")


def run(graph: gs.Graph, context: Context) -> int:
    """1 where compression has become a call, else 0; `check` says why."""
    found = _find_call(graph, context)
    if isinstance(found, str):
        return 0
    region, source, result, spec = found
    attributes = attributes_of(spec) | {
        "plan": list(make_plan(spec, *source.shape[:3]).ints),
        "plugin_namespace": DOMAIN,
        "plugin_version": VERSION,
    }
    body = gs.Graph(region, [source], [result]).copy()
    versions = {"opset": graph.opset, "import_domains": graph.import_domains, "ir_version": graph.ir_version}
    function = gs.Function(NAME, DOMAIN, body.nodes, body.inputs, body.outputs, attrs=dict.fromkeys(attributes), **versions)
    graph.functions.append(function)
    call = gs.Node(NAME, NODE, attributes, [source], domain=DOMAIN)
    insert_after(graph, result, call)
    result.inputs = [call]
    graph.cleanup()
    return 1


def check(graph: gs.Graph, context: Context) -> str:
    """Whether a plugin can replace compression, or why not."""
    if any((node.domain, node.op) == (DOMAIN, NAME) for node in graph.nodes):
        return f"{len(graph.functions[-1].nodes)} nodes are the body of {DOMAIN}::{NAME}, which a TensorRT plugin may replace"
    return f"compression stays plain nodes: {_find_call(graph, context)}"


def _find_call(graph: gs.Graph, context: Context) -> tuple[list[gs.Node], gs.Tensor, gs.Tensor, StGridPool] | str:
    """The nodes that a call can replace, what they read and make, and the op that computes it; or the reason why none can."""
    region = [node for node in graph.nodes if node.name.startswith(_STAGES)]
    try:
        spec = spec_from_text(context.compression)
    except SpecError as error:
        return str(error)
    if not region:
        return "there are no nodes of the stages ptg and nsp"
    made = {tensor.name for node in region for tensor in node.outputs}
    read = {tensor.name: tensor for node in region for tensor in node.inputs if isinstance(tensor, gs.Variable)}
    entering = [tensor for name, tensor in read.items() if name and name not in made]
    left = leaving(graph, region)
    if len(entering) != 1 or len(left) != 1:
        return f"{len(entering)} tensors enter the stages and {len(left)} leave them; expected one of each"
    (source,), (result,) = entering, left
    shape = static_shape(source)
    if shape is None or source.dtype is None:
        return f"the shape or dtype of {source.name} is not known"
    reason = not_covered(spec, shape, np.dtype(source.dtype).name)
    if reason:
        return reason
    if static_shape(result) != output_shape(spec, shape) or result.dtype != source.dtype:
        return f"the stages make {result.shape} of {source.shape}, not what {spec} makes of it"
    return region, source, result, spec
