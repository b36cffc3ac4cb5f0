"""Readable names for nodes and tensors: `vision/encoder/layer.3/self_attn/MatMul`, `compress/ptg/level.1/Gather`.

In: the module scopes that the exporter recorded of its nodes (`encoder.layers.3.self_attn`). Out: nodes called <scope>/<operator>, with
a number where a scope has several of one kind; a tensor is called after the node that makes it, and a constant without a checkpoint
name after the first node that reads it. Graph inputs, outputs and parameters keep their names. A node without a scope and with a
readable name keeps that, so the pass can run again. It must be the first pass: the scopes are those of the model's nodes, in order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import takewhile

import onnx
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context, unused
from runtime.core.errors import ExportError

Rules = Sequence[tuple[str, str]]

# The first pattern that matches the path decides; paths have `/` between modules and `.` before an index.
VISION_RULES: Rules = ((r"^compress(or)?(?=/|$)", "compress"), (r"^(?=.)", "vision/"), (r"^$", "vision"))
DECODER_RULES: Rules = ((r"^(?=.)", "llm/"), (r"^$", "llm"))

_ROLES = {
    ("MatMul", 0): "weight",
    ("MatMul", 1): "weight",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("Reshape", 1): "shape",
    ("Expand", 1): "shape",
    ("Gather", 1): "indices",
    ("Slice", 1): "starts",
    ("Slice", 2): "ends",
    ("Slice", 3): "axes",
    ("Slice", 4): "steps",
}
_SCOPES = "pkg.torch.onnx.name_scopes"
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


def run(graph: gs.Graph, context: Context) -> int:
    """Rename nodes and tensors; counts those that have another name than before."""
    rules = VISION_RULES if graph.name.startswith("vision") else DECODER_RULES
    scopes = zip(graph.nodes, module_scopes(graph, context.model), strict=True)
    wanted = [(node, scope, _node_name(node, scope or "", rules)) for node, scope in scopes]
    used = {name for node, scope, name in wanted if name == node.name and not scope}  # not to be given to an earlier node
    changed = 0
    for node, scope, name in wanted:
        if scope or name != node.name:
            name = unused(name, used)
        used.add(name)
        changed += name != node.name
        node.name = name
    traced = {id(node) for node, scope, _ in wanted if scope is not None}
    named = {value.name for value in context.model.graph.value_info for prop in value.metadata_props if prop.key == _KIND}
    return changed + _rename_tensors(graph, traced, named)


def check(graph: gs.Graph, context: Context) -> str:
    """How many nodes are named; ExportError where two have one name."""
    names = [node.name for node in graph.nodes]
    if len(set(names)) < len(names) or "" in names:
        double = next(name for name in names if not name or names.count(name) > 1)
        raise ExportError(f'{graph.name}: two nodes are called "{double}"; expected unique names after the pass')
    return f"{len(names)} nodes named"


def module_scopes(graph: gs.Graph, model: onnx.ModelProto) -> list[str | None]:
    """For each node its module in the traced torch module, e.g. `encoder.layers.3.self_attn`; "" at the root or where unknown.

    None for nodes of a model that was not traced. A node that the exporter's optimizer made without a scope gets the innermost scope
    that contains all its readers.
    """
    scopes = {id(node): _module_scope(proto) for node, proto in zip(graph.nodes, model.graph.node, strict=True)}
    if any(scopes.values()):
        for node in reversed(graph.nodes):
            if scopes[id(node)] is None:
                readers = [(scopes[id(reader)] or "").split(".") for tensor in node.outputs for reader in tensor.outputs]
                common = takewhile(lambda parts: len(set(parts)) == 1, zip(*readers, strict=False))
                scopes[id(node)] = ".".join(parts[0] for parts in common)
    return list(scopes.values())


def path_of_scope(scope: str, rules: Rules) -> str:
    """`encoder.layers.3.mlp` -> `vision/encoder/layer.3/mlp`."""
    path = re.sub(r"\.(?!\d+(?:\.|$))", "/", scope)
    path = re.sub(r"(^|/)layers(?=\.\d)", r"\1layer", path)
    for pattern, replacement in rules:
        renamed, hits = re.subn(pattern, replacement, path, count=1)
        if hits:
            return renamed
    return path


def _module_scope(node: onnx.NodeProto) -> str | None:
    for prop in node.metadata_props:
        if prop.key == _SCOPES:
            scopes = ast.literal_eval(prop.value)  # modules from the root inwards, then the traced op itself
            scope = scopes[-2] if len(scopes) > 1 else ""
            return "" if scope.startswith("_empty_nn_module_stack") else scope  # sizes that the exporter itself reads
    return None


def _node_name(node: gs.Node, scope: str, rules: Rules) -> str:
    if not scope and "/" in node.name:
        return node.name
    return f"{path_of_scope(scope, rules)}/{node.op}".lstrip("/")


def _rename_tensors(graph: gs.Graph, traced: set[int], named: set[str]) -> int:
    """traced: ids of nodes of the exporter; named: constants that have a module's name. Other constants that traced nodes read were
    named by the exporter."""
    fixed = {tensor.name for tensor in [*graph.inputs, *graph.outputs]}
    new: dict[int, tuple[gs.Tensor, str]] = {}
    for node in graph.nodes:
        for index, tensor in enumerate(node.outputs):
            if tensor.name and tensor.name not in fixed:
                new[id(tensor)] = (tensor, node.name if len(node.outputs) == 1 else f"{node.name}.{index}")
        for index, tensor in enumerate(node.inputs):
            exporters = id(node) in traced and isinstance(tensor, gs.Constant) and tensor.name not in named
            if id(tensor) not in new and exporters and not re.search(r"[./]", tensor.name):
                new[id(tensor)] = (tensor, f"{node.name}/{_ROLES.get((node.op, index), 'constant')}")
    used = fixed | {tensor.name for tensor in graph.tensors().values() if id(tensor) not in new}
    changed = 0
    for tensor, name in new.values():
        name = unused(name, used)
        used.add(name)
        changed += name != tensor.name
        tensor.name = name
    return changed
