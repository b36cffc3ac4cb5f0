"""Names a person can read, for nodes and tensors: `vision/encoder/layer.3/self_attn/MatMul`, `compress/ptg/level.1/Gather`.

In: nodes with the module scopes that the exporter recorded (`encoder.layers.3.self_attn`). Out: nodes called
<scope>/<operator>, a number behind where a scope has several of one kind; every tensor is called after the node that makes
it, and a constant without a checkpoint name after the first node that reads it. Graph inputs, outputs and parameters keep
their names. A node without a scope and with a readable name keeps that, so the pass can run again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from export.surgeon.graph import is_exporters, scope_of
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


def run(graph: gs.Graph, rules: Rules | None = None) -> int:
    """Rename nodes and tensors; `rules` default to those of the graph's name."""
    if rules is None:
        rules = VISION_RULES if graph.name.startswith("vision") else DECODER_RULES
    fixed = {tensor.name for tensor in [*graph.inputs, *graph.outputs]}
    nodes: set[str] = set()
    changed = 0
    wanted = [_node_name(node, rules) for node in graph.nodes]
    # names that stay as they are must not be given away to an earlier node
    nodes.update(name for node, name in zip(graph.nodes, wanted, strict=True) if name == node.name and not scope_of(node))
    for node, name in zip(graph.nodes, wanted, strict=True):
        if scope_of(node) or name != node.name:
            name = _free(name, nodes)
        nodes.add(name)
        changed += name != node.name
        node.name = name
    return changed + _rename_tensors(graph, fixed)


def check(graph: gs.Graph) -> str:
    """Every node has a name of its own."""
    names = [node.name for node in graph.nodes]
    if len(set(names)) < len(names) or "" in names:
        double = next(name for name in names if not name or names.count(name) > 1)
        raise ExportError(f'{graph.name}: two nodes are called "{double}"; expected unique names after the pass')
    return f"{len(names)} nodes named"


def path_of_scope(scope: str, rules: Rules) -> str:
    """`encoder.layers.3.mlp` -> `vision/encoder/layer.3/mlp`."""
    path = re.sub(r"\.(?!\d+(?:\.|$))", "/", scope)
    path = re.sub(r"(^|/)layers(?=\.\d)", r"\1layer", path)
    for pattern, replacement in rules:
        renamed, hits = re.subn(pattern, replacement, path, count=1)
        if hits:
            return renamed
    return path


def _node_name(node: gs.Node, rules: Rules) -> str:
    if not scope_of(node) and "/" in node.name:
        return node.name
    return f"{path_of_scope(scope_of(node), rules)}/{node.op}".lstrip("/")


def _free(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _rename_tensors(graph: gs.Graph, fixed: set[str]) -> int:
    new: dict[int, tuple[gs.Tensor, str]] = {}
    for node in graph.nodes:
        for index, tensor in enumerate(node.outputs):
            if tensor.name and tensor.name not in fixed:
                new[id(tensor)] = (tensor, node.name if len(node.outputs) == 1 else f"{node.name}.{index}")
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in new and is_exporters(tensor, node) and not re.search(r"[./]", tensor.name):
                new[id(tensor)] = (tensor, f"{node.name}/{_ROLES.get((node.op, index), 'constant')}")
    taken = fixed | {tensor.name for tensor in graph.tensors().values() if id(tensor) not in new}
    changed = 0
    for tensor, name in new.values():
        name = _free(name, taken)
        taken.add(name)
        changed += name != tensor.name
        tensor.name = name
    return changed
