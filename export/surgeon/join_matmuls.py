"""Matrix products that read one tensor become one product: mostly query, key and value of an attention.

    q = x Wq + bq, k = x Wk + bk, v = x Wv + bv   becomes   q, k, v = Split(x [Wq Wk Wv] + [bq bk bv])

For quantised graphs, and on request only, because it reads and copies the weights. ONNX Runtime 1.31 uses its integer kernel for an
int8 product only where nothing else reads the dequantised input, and would compute these three in float; and where weights are small,
as in an int4 decoder, a step's cost is the number of its products.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context, free_name, insert_after, reroute, unique

ARITHMETIC = ("compress/", "vision/input/")  # scopes whose products are not layers


def run(graph: gs.Graph, context: Context) -> int:
    """Counts the products that were joined with another one."""
    joined = 0
    for tensor in list(graph.tensors().values()):
        products = [node for node in unique(tensor.outputs) if _is_layer(node, tensor) and not _leaves(graph, node)]
        if len(products) > 1:
            _join(graph, tensor, products)
            joined += len(products)
    graph.cleanup()
    return joined


def _is_layer(node: gs.Node, tensor: gs.Tensor) -> bool:
    return (
        node.op == "MatMul"
        and node.inputs[0] is tensor
        and isinstance(node.inputs[1], gs.Constant)
        and len(node.inputs[1].shape) == 2
        and not node.name.startswith(ARITHMETIC)
    )


def _leaves(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether the product, or its sum with a bias, is an output of the graph, which keeps its name and producer."""
    found = _bias(graph, node)
    return node.outputs[0] in graph.outputs or (found is not None and found[0].outputs[0] in graph.outputs)


def _join(graph: gs.Graph, source: gs.Tensor, products: list[gs.Node]) -> None:
    """Join `products`, and their biases where each of them has one."""
    weight = np.concatenate([node.inputs[1].values for node in products], axis=1)
    sizes = [node.inputs[1].shape[1] for node in products]
    biases = [_bias(graph, node) for node in products]
    ends = [node.outputs[0] for node in products]
    shape = [*ends[0].shape[:-1], sum(sizes)]
    name = free_name(graph, _name([node.name for node in products]))
    out = gs.Variable(name, weight.dtype, shape)
    last = gs.Node("MatMul", name, inputs=[source, gs.Constant(f"{name}/weight", weight)], outputs=[out])
    insert_after(graph, source, last)
    found = [bias for bias in biases if bias]
    if len(found) == len(products):
        ends = [add.outputs[0] for add, _ in found]
        bias = gs.Constant(f"{name}/bias", np.concatenate([values.values for _, values in found]))
        added = gs.Variable(free_name(graph, f"{name}/Add"), weight.dtype, shape)
        insert_after(graph, out, gs.Node("Add", added.name, inputs=[out, bias], outputs=[added]))
        out = added
    parts = [
        gs.Variable(free_name(graph, f"{name}/{index}"), weight.dtype, [*shape[:-1], size]) for index, size in enumerate(sizes)
    ]
    at = gs.Constant(free_name(graph, f"{name}/sizes"), np.array(sizes, np.int64))
    insert_after(graph, out, gs.Node("Split", free_name(graph, f"{name}/Split"), {"axis": len(shape) - 1}, [out, at], parts))
    for end, part in zip(ends, parts, strict=True):
        reroute(end, part)


def _bias(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node, gs.Constant] | None:
    """The Add of a constant row, where it is the product's only reader."""
    (out,) = node.outputs
    readers = unique(out.outputs)
    if len(readers) != 1 or readers[0].op != "Add" or out in graph.outputs:
        return None
    other = next((tensor for tensor in readers[0].inputs if tensor is not out), None)
    fits = isinstance(other, gs.Constant) and list(other.shape) == [out.shape[-1]]
    return (readers[0], other) if fits else None


def _name(names: list[str]) -> str:
    """`a/q/MatMul`, `a/k/MatMul` -> `a/q+k/MatMul`."""
    split = [name.split("/") for name in names]
    if len({(*parts[:-2], parts[-1]) for parts in split}) > 1 or len(split[0]) < 2:
        return f"{names[0]}/joined"
    return "/".join([*split[0][:-2], "+".join(parts[-2] for parts in split), split[0][-1]])
