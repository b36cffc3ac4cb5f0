"""Each node of a graph against the operator table of a TensorRT release.

Local functions are inlined first, as the parser does: a call of `gridpool::StGridPool` is as good as the body of its function.
Types come from ONNX's shape inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir

from export.tensorrt.limits import LIFTED, LIMITS, tensor_at
from export.tensorrt.operators import PARSERS, RELEASES, release_of
from runtime.core.errors import ExportError

_TYPES = {  # element types that the parser's table calls by another name than ONNX
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT4E2M1: "FP4",
}
_DATA_INPUT = {"Where": 1, "OneHot": 2}  # which input has the type that the table means; the first of all others
_DATA_OUTPUT = {"Constant", "ConstantOfShape", "EyeLike"}  # operators whose output has it instead
_TYPE_FREE = {"If", "Loop", "Scan"}  # the nodes of their bodies are checked instead


@dataclass(frozen=True)
class Unsupported:
    """A node (its name, or its first output's where it has none), its operator and why TensorRT does not support it.

    An opset that is too high comes first, as operator "opset 24" of the node "" (the model) or of a function's name.
    """

    node: str
    op: str
    why: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.op}): {self.why}" if self.node else f"{self.op}: {self.why}"


def check(model: onnx.ModelProto, release: str) -> list[Unsupported]:
    """The nodes of `model` that the parser of TensorRT `release` does not support, in the graph's order."""
    release = release_of(release)
    parser = PARSERS[release]
    found = [
        Unsupported(where, f"opset {version}", f"this parser supports opsets {parser.min_opset} to {parser.max_opset}")
        for where, version in _opsets(model)
        if not parser.min_opset <= version <= parser.max_opset
    ]
    inlined = onnx.inliner.inline_local_functions(model) if model.functions else model
    inlined = onnx.shape_inference.infer_shapes(inlined)
    for node in inlined.graph.node:
        node.name = node.name or node.output[0]  # onnx_ir would make one up
    read = ir.from_proto(inlined)
    judged = ((node, why_not(node, release)) for node in _nodes(read.graph, read.functions))
    return found + [Unsupported(node.name or "", node.op_type, why) for node, why in judged if why]


def require(model: onnx.ModelProto, release: str) -> None:
    """Raise ExportError, naming the opset or the first node, where the parser of TensorRT `release` does not support `model`."""
    found = check(model, release)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    newer = next((known for known in RELEASES[RELEASES.index(release_of(release)) + 1 :] if not check(model, known)), None)
    remedy = f"with --tensorrt {newer}, or newer" if newer else f"without --tensorrt: no known release does ({', '.join(RELEASES)})"
    raise ExportError(f"TensorRT {release} does not support {found[0]}{more}; export {remedy}")


def why_not(node: ir.Node, release: str) -> str | None:
    """Why the parser of `release`, one of RELEASES, does not support a node; None where it does."""
    if node.domain:
        return f'"{node.domain}" is not an ONNX domain and the model has no function of that name: it would need a plugin'
    types = PARSERS[release].operators.get(node.op_type)
    if types is None:
        return f"TensorRT {release} has no such operator"
    for name, kind in _data_types(node):
        if kind == "DOUBLE" and node.op_type not in ("Cast", "CastLike", "Constant"):
            return f"{name} is DOUBLE, which TensorRT computes in FP32: cast it in the graph"
        if kind not in types and kind != "DOUBLE":
            return f"{name} is {kind}; expected {', '.join(sorted(types))}"
    lifted = node.op_type in LIFTED and RELEASES.index(release) >= RELEASES.index(LIFTED[node.op_type])
    return None if lifted or node.op_type not in LIMITS else LIMITS[node.op_type](node)


def _data_types(node: ir.Node) -> Iterator[tuple[str | None, str]]:
    """(name, type) of the tensors whose type the table means, as far as it is known."""
    if node.op_type in _TYPE_FREE:
        return
    data = node.outputs[0] if node.op_type in _DATA_OUTPUT else tensor_at(node, _DATA_INPUT.get(node.op_type, 0))
    tensors = [node.outputs[0], data] if node.op_type == "Cast" else [data]
    for tensor in tensors:
        if tensor is not None and tensor.dtype:
            yield tensor.name, _TYPES.get(tensor.dtype, tensor.dtype.name)


def _nodes(graph: ir.Graph | ir.Function, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> Iterator[ir.Node]:
    """All nodes, those of subgraphs included, and of functions that could not be inlined (of another opset than the model)."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        function = functions.get(node.op_identifier())
        yield from [node] if function is None else _nodes(function, functions)


def _opsets(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    for owner, imports in (("", model.opset_import), *((f.name, f.opset_import) for f in model.functions)):
        for opset in imports:
            if opset.domain in ("", "ai.onnx"):
                yield owner, opset.version
