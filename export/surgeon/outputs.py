"""Removing graph outputs that served a comparison; a Loop then no longer stacks what nothing reads."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def drop_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of `model` without the outputs `names`. Their types stay in its value_info, so that a tool can mark them as outputs again,
    except for those that only a Loop made and nothing else reads: they are no longer computed."""
    final = onnx.ModelProto()
    final.CopyFrom(model)
    graph = final.graph
    dropped = [output for output in graph.output if output.name in names]
    kept = [output for output in graph.output if output.name not in names]
    del graph.output[:]
    graph.output.extend(kept)
    read = {name for node in graph.node for name in node.input} | {output.name for output in kept}
    unread = [name for node in graph.node if node.op_type == "Loop" for name in _drop_stacked(node, read)]
    graph.value_info.extend(output for output in dropped if output.name not in unread)
    return final


def _drop_stacked(loop: onnx.NodeProto, read: set[str]) -> list[str]:
    """Remove the stacked outputs that are not in `read` from a Loop, and the nodes that only they needed from its body."""
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    carried = len(loop.input) - 2
    gone = [index for index, name in enumerate(loop.output) if index >= carried and name not in read]
    names = [loop.output[index] for index in gone]
    for index in reversed(gone):
        del loop.output[index]
        del body.output[index + 1]  # the condition comes first
    needed = {output.name for output in body.output}
    alive = []
    for node in reversed(body.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            alive.append(node)
    alive = [node.SerializeToString() for node in reversed(alive)]
    del body.node[:]
    for node in alive:
        body.node.add().ParseFromString(node)
    return names
