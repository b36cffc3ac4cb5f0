"""Does the TensorRT of a given release take this graph? An answer without that TensorRT, from its parser's own table.

    check(model, "10.3")     every node that it does not take, with the reason
    require(model, "10.3")   ExportError that names the first of them
    parse_with_rtx(path)     what the real parser says, that of the installed TensorRT-RTX

Local functions are inlined first, as the parser does: a `gridpool` node is as good as the body of its function. Types come
from ONNX's shape inference, for which the weights are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from export.tensorrt_operators import PARSERS, Parser
from runtime.core.errors import ExportError

RELEASES = tuple(PARSERS)

_TYPES = {  # ONNX's names of the element types where the parser's table has another
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}
_DATA_INPUT = {"Where": 1, "OneHot": 2}  # which input has the type that the table means; the first of all others
_DATA_OUTPUT = {"Constant", "ConstantOfShape", "EyeLike", "Cast"}  # operators whose output has it (too)
_TYPE_FREE = {"If", "Loop", "Scan"}  # their bodies' nodes are looked at instead
_MOST_TOP_K = 3840
_BIG = 1 << 16  # bytes from which a constant is a weight, whose values nobody asks for


@dataclass(frozen=True)
class Unsupported:
    """A node (its name, or its first output's where it has none), its operator and why TensorRT does not take it.

    An opset that is too high stands first, as operator "opset 24" of the node "" (the model) or of a function's name.
    """

    node: str
    op: str
    why: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.op}): {self.why}" if self.node else f"{self.op}: {self.why}"


def release_of(version: str) -> str:
    """The newest known release that is not newer than `version`: "10.7" -> "10.3"; a bare major means its newest one."""
    known = {release: _numbers(release) for release in RELEASES}
    match = re.fullmatch(r"(\d+)(?:\.(\d+)(?:\.\d+)*|\.x)?", version.strip())
    if match:
        major = int(match[1])
        same = [release for release in RELEASES if known[release][0] == major]
        if match[2] is None and same:
            return same[-1]
        not_newer = [release for release in RELEASES if known[release] <= (major, int(match[2] or 0))]
        if same and not_newer:
            return not_newer[-1]
    raise ExportError(f'no table for TensorRT "{version}"; known: {", ".join(RELEASES)} and the versions between them')


def check(model: onnx.ModelProto, release: str) -> list[Unsupported]:
    """Every node of `model` that the parser of TensorRT `release` does not take, in the graph's order."""
    parser = PARSERS[release_of(release)]
    found = [
        Unsupported(where, f"opset {version}", f"this parser takes opsets {parser.min_opset} to {parser.max_opset}")
        for where, version in _opsets(model)
        if not parser.min_opset <= version <= parser.max_opset
    ]
    light = _without_weights(model)
    inlined = onnx.inliner.inline_local_functions(light) if light.functions else light
    inlined = onnx.shape_inference.infer_shapes(inlined)
    scope = _Scope()
    scope.read(inlined.graph)
    functions = {(function.domain, function.name): function for function in inlined.functions}
    for node in _walk(inlined.graph.node, functions, scope):
        why = _why_not(node, parser, release_of(release), scope)
        if why:
            found.append(Unsupported(node.name or next(iter(node.output), "(unnamed)"), node.op_type, why))
    return found


def require(model: onnx.ModelProto, release: str) -> None:
    """Raise ExportError, naming the opset or the first node, where the parser of TensorRT `release` does not take `model`."""
    found = check(model, release)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        newer = next(
            (known for known in RELEASES if _numbers(known) > _numbers(release_of(release)) and not check(model, known)), None
        )
        remedy = (
            f"with --tensorrt {newer}, or newer"
            if newer
            else f"without --tensorrt: no known release takes it ({', '.join(RELEASES)})"
        )
        raise ExportError(f"TensorRT {release} does not take {found[0]}{more}; export {remedy}")


def parse_with_rtx(path: Path) -> list[str] | None:
    """Errors of TensorRT-RTX's real parser, each one line that names its node; None where it is not installed."""
    from runtime.engine import trt_api as facade

    return facade.parse_errors("tensorrt-rtx", path) if facade.installed("tensorrt-rtx") else None


@dataclass
class _Scope:
    """What is known of the tensors: element types, ranks, and the values of small constants."""

    types: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def read(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.ranks[value.name] = len(tensor.shape.dim)
        for tensor in graph.initializer:
            self.add(tensor.name, tensor)
        for node in graph.node:
            self.read_node(node)

    def read_node(self, node: NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Constant":
                self.constants.add(node.output[0])
                if attribute.name == "value":
                    self.add(node.output[0], attribute.t)
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    self.values[node.output[0]] = np.asarray(helper.get_attribute_value(attribute))
            for graph in _graphs(attribute):
                self.read(graph)

    def add(self, name: str, tensor: TensorProto) -> None:
        self.constants.add(name)
        self.types[name], self.ranks[name] = tensor.data_type, len(tensor.dims)
        if tensor.ByteSize() <= _BIG and not tensor.external_data and _has_values(tensor):
            self.values[name] = numpy_helper.to_array(tensor)


def _why_not(node: NodeProto, parser: Parser, release: str, scope: _Scope) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f'"{node.domain}" is not an ONNX domain and the model has no function of that name: it would need a plugin'
    types = parser.operators.get(node.op_type)
    if types is None:
        return f"TensorRT {release} has no such operator"
    for name in _data_tensors(node):
        if name not in scope.types:
            continue
        kind = _TYPES.get(scope.types[name], TensorProto.DataType.Name(scope.types[name]))
        if kind == "DOUBLE" and node.op_type not in ("Cast", "CastLike", "Constant"):
            return f"{name} is DOUBLE, which TensorRT computes in FP32: cast it in the graph"
        if kind not in types and kind != "DOUBLE":
            return f"{name} is {kind}, it takes {', '.join(sorted(types))}"
    limit = _LIMITS.get(node.op_type)
    return limit(_View(node, scope, release)) if limit else None


def _data_tensors(node: NodeProto) -> list[str]:
    if node.op_type in _TYPE_FREE:
        return []
    index = _DATA_INPUT.get(node.op_type, 0)
    names = list(node.output[:1]) if node.op_type in _DATA_OUTPUT else []
    if node.op_type not in ("Constant", "ConstantOfShape", "EyeLike") and index < len(node.input):
        names.append(node.input[index])
    return [name for name in names if name]


@dataclass(frozen=True)
class _View:
    """One node with what its limits are about."""

    node: NodeProto
    scope: _Scope
    release: str

    def attribute(self, name: str, default: object) -> object:
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def input(self, index: int) -> str:
        return self.node.input[index] if index < len(self.node.input) else ""

    def outputs(self) -> int:
        return sum(bool(name) for name in self.node.output)

    def value(self, index: int) -> np.ndarray | None:
        return self.scope.values.get(self.input(index))


def _constant(index: int, what: str, until: str = "") -> Callable[[_View], str | None]:
    """The input must be a constant; `until` is the first known release where it need not."""

    def limit(view: _View) -> str | None:
        name = view.input(index)
        lifted = until and _numbers(view.release) >= _numbers(until)
        return f"its {what} must be a constant" if name and name not in view.scope.constants and not lifted else None

    return limit


def _top_k(view: _View) -> str | None:
    if view.attribute("sorted", 1) != 1:
        return "sorted must be 1"
    k = view.value(1)
    if k is not None and int(k.reshape(-1)[0]) > _MOST_TOP_K:
        return f"K is {int(k.reshape(-1)[0])}, at most {_MOST_TOP_K} are taken"
    return None


def _scatter_nd(view: _View) -> str | None:
    reduction = view.attribute("reduction", "none")
    return f'reduction "{reduction}" is not taken, only "none"' if reduction != "none" else None


def _one_output(view: _View) -> str | None:
    return "only its first output is taken" if view.outputs() > 1 else None


def _pool(view: _View) -> str | None:
    if any(step != 1 for step in view.attribute("dilations", [])):  # type: ignore[attr-defined]
        return "dilations must all be 1"
    rank = view.scope.ranks.get(view.input(0))
    if view.node.op_type != "LpPool" and rank is not None and rank not in (4, 5):
        return f"its input has {rank} dimensions, only 2D and 3D pooling are taken"
    return _one_output(view)


def _resize(view: _View) -> str | None:
    allowed: dict[str, tuple[object, set]] = {
        "mode": ("nearest", {"nearest", "linear"}),
        "coordinate_transformation_mode": (
            "half_pixel",
            {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"},
        ),
        "keep_aspect_ratio_policy": ("stretch", {"stretch"}),
        "antialias": (0, {0}),
    }
    for name, (default, values) in allowed.items():
        if view.attribute(name, default) not in values:
            return f"{name} {view.attribute(name, default)} is not taken, only {', '.join(map(str, sorted(values, key=str)))}"
    return None


def _zero_point(view: _View) -> str | None:
    zero = view.value(2)
    return "its zero point must be 0" if zero is not None and np.any(zero.astype(np.float32)) else None


def _attention(view: _View) -> str | None:
    for index, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if view.input(index):
            return f"{name} is not taken: pass the whole cache and a mask"
    if view.outputs() > 1:
        return "only its first output is taken: update the cache outside of it"
    if view.attribute("softcap", 0.0) or view.attribute("qk_matmul_output_mode", 0):
        return "softcap and qk_matmul_output_mode are not taken"
    ranks = [view.scope.ranks.get(view.input(index), 4) for index in range(4) if view.input(index)]
    return "Q, K, V and the mask must have 4 dimensions" if any(rank != 4 for rank in ranks) else None


def _rotary(view: _View) -> str | None:
    kind = view.scope.types.get(view.input(3), TensorProto.INT64)
    return "position_ids must be INT64" if kind != TensorProto.INT64 else None


def _tensor_scatter(view: _View) -> str | None:
    if view.attribute("axis", -2) not in (-2, 2):
        return "axis must be -2"
    return "its tensors must have 4 dimensions" if view.scope.ranks.get(view.input(0), 4) != 4 else None


_LIMITS: dict[str, Callable[[_View], str | None]] = {
    "TopK": _top_k,
    "ScatterND": _scatter_nd,
    "LayerNormalization": _one_output,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "Resize": _resize,
    "QuantizeLinear": _zero_point,
    "DequantizeLinear": _zero_point,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _tensor_scatter,
    "CumSum": _constant(1, "axis"),
    "Squeeze": _constant(1, "axes"),
    "Unsqueeze": _constant(1, "axes"),
    "OneHot": _constant(1, "depth"),
    "Pad": _constant(3, "axes", until="10.13"),
    **{
        f"Reduce{kind}": _constant(1, "axes")
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}


def _walk(nodes: Iterable[NodeProto], functions: dict, scope: _Scope) -> Iterator[NodeProto]:
    """Every node, those of subgraphs and of functions that could not be inlined included."""
    for node in nodes:
        function = functions.get((node.domain, node.op_type))
        if function is not None:  # of another opset than the model: its types are unknown here
            inner = _Scope()
            for part in function.node:
                inner.read_node(part)
            yield from _walk(function.node, functions, inner)
            continue
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _walk(graph.node, functions, scope)


def _graphs(attribute: AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)


def _opsets(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    for owner, imports in (("", model.opset_import), *((f.name, f.opset_import) for f in model.functions)):
        for opset in imports:
            if opset.domain in ("", "ai.onnx"):
                yield owner, opset.version


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with only names, types and shapes of its weights: a model past 2 GB can't be serialised for inference."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(model.graph, name))
    light.graph.name = model.graph.name or "graph"
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > _BIG or tensor.external_data:
            light.graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    return light


def _has_values(tensor: TensorProto) -> bool:
    stored = (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return any(len(data) for data in stored)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
