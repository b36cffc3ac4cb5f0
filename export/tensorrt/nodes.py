"""Each node of a graph against the operator table of a TensorRT release.

Local functions are inlined first, as the parser does: a call of `gridpool::StGridPool` is as good as the body of its function.
Types come from ONNX's shape inference, for which the weights are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import NodeProto, TensorProto

from export.tensorrt.limits import LIMITS, View
from export.tensorrt.operators import PARSERS, RELEASES, release_of
from export.tensorrt.tensors import Tensors, subgraphs, without_weights
from runtime.core.errors import ExportError

_TYPES = {  # element types that the parser's table calls by another name than ONNX
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}
_DATA_INPUT = {"Where": 1, "OneHot": 2}  # which input has the type that the table means; the first of all others
_DATA_OUTPUT = {"Constant", "ConstantOfShape", "EyeLike", "Cast"}  # operators whose output has it (too)
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
    light = without_weights(model)
    inlined = onnx.inliner.inline_local_functions(light) if light.functions else light
    inlined = onnx.shape_inference.infer_shapes(inlined)
    tensors = Tensors()
    tensors.read(inlined.graph)
    functions = {(function.domain, function.name): function for function in inlined.functions}
    for node in _walk(inlined.graph.node, functions, tensors):
        why = why_not(node, release, tensors)
        if why:
            found.append(Unsupported(node.name or next(iter(node.output), "(unnamed)"), node.op_type, why))
    return found


def require(model: onnx.ModelProto, release: str) -> None:
    """Raise ExportError, naming the opset or the first node, where the parser of TensorRT `release` does not support `model`."""
    found = check(model, release)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    newer = next((known for known in RELEASES[RELEASES.index(release_of(release)) + 1 :] if not check(model, known)), None)
    remedy = f"with --tensorrt {newer}, or newer" if newer else f"without --tensorrt: no known release does ({', '.join(RELEASES)})"
    raise ExportError(f"TensorRT {release} does not support {found[0]}{more}; export {remedy}")


def why_not(node: NodeProto, release: str, tensors: Tensors) -> str | None:
    """Why the parser of `release`, one of RELEASES, does not support a node; None where it does."""
    if node.domain not in ("", "ai.onnx"):
        return f'"{node.domain}" is not an ONNX domain and the model has no function of that name: it would need a plugin'
    types = PARSERS[release].operators.get(node.op_type)
    if types is None:
        return f"TensorRT {release} has no such operator"
    for name in _data_tensors(node):
        if name not in tensors.types:
            continue
        kind = _TYPES.get(tensors.types[name], TensorProto.DataType.Name(tensors.types[name]))
        if kind == "DOUBLE" and node.op_type not in ("Cast", "CastLike", "Constant"):
            return f"{name} is DOUBLE, which TensorRT computes in FP32: cast it in the graph"
        if kind not in types and kind != "DOUBLE":
            return f"{name} is {kind}; expected {', '.join(sorted(types))}"
    limit = LIMITS.get(node.op_type)
    return limit(View(node, tensors, release)) if limit else None


def _data_tensors(node: NodeProto) -> list[str]:
    if node.op_type in _TYPE_FREE:
        return []
    index = _DATA_INPUT.get(node.op_type, 0)
    names = list(node.output[:1]) if node.op_type in _DATA_OUTPUT else []
    if node.op_type not in ("Constant", "ConstantOfShape", "EyeLike") and index < len(node.input):
        names.append(node.input[index])
    return [name for name in names if name]


def _walk(nodes: Iterable[NodeProto], functions: dict, tensors: Tensors) -> Iterator[NodeProto]:
    """All nodes, those of subgraphs and of functions that could not be inlined included."""
    for node in nodes:
        function = functions.get((node.domain, node.op_type))
        if function is not None:  # of another opset than the model: its types are unknown here
            inner = Tensors()
            for part in function.node:
                inner.read_node(part)
            yield from _walk(function.node, functions, inner)
            continue
        yield node
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                yield from _walk(graph.node, functions, tensors)


def _opsets(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    for owner, imports in (("", model.opset_import), *((f.name, f.opset_import) for f in model.functions)):
        for opset in imports:
            if opset.domain in ("", "ai.onnx"):
                yield owner, opset.version
