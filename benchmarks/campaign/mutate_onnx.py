"""Damage that keeps an ONNX file a valid message: operators, inputs, attributes, shapes, types, initialisers and versions changed."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.campaign import mutate_bytes

_OPERATORS = ("Add", "MatMul", "Reshape", "Gather", "Loop", "If", "Softmax", "Conv", "NoSuch", "Cast", "Concat", "Slice", "Resize")
_SIZES = (0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**62)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A damaged copy of a serialised model."""
    if rng.random() < 0.25:
        return mutate_bytes.mutated(rng, data)
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_WAYS)(rng, model)
    return model.SerializeToString()


def _nodes(model: Any) -> list[Any]:
    return [*model.graph.node, *(node for function in model.functions for node in function.node)]


def _operator(rng: random.Random, model: Any) -> None:
    rng.choice(_nodes(model)).op_type = rng.choice(_OPERATORS)


def _input(rng: random.Random, model: Any) -> None:
    node, other = rng.choice(_nodes(model)), rng.choice(_nodes(model))
    names = [*other.input, *other.output, "", "absent"]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _output(rng: random.Random, model: Any) -> None:
    node, other = rng.choice(_nodes(model)), rng.choice(_nodes(model))
    if node.output and other.output:
        node.output[0] = rng.choice([*other.output, ""])


def _drop(rng: random.Random, model: Any) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _attribute(rng: random.Random, model: Any) -> None:
    attributes = [attribute for node in _nodes(model) for attribute in node.attribute]
    if attributes:
        attribute = rng.choice(attributes)
        attribute.i, attribute.f = (
            rng.choice(_SIZES) if rng.random() < 0.7 else attribute.i,
            rng.choice((0.0, -1.0, 1e38, float("nan"))),
        )
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIZES)


def _shape(rng: random.Random, model: Any) -> None:
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [dim for info in infos for dim in info.type.tensor_type.shape.dim]
    if dims:
        dim = rng.choice(dims)
        if rng.random() < 0.8:
            dim.dim_value = rng.choice(_SIZES)
        else:
            dim.dim_param = rng.choice(("S", "T", "other", ""))


def _type(rng: random.Random, model: Any) -> None:
    info = rng.choice([*model.graph.input, *model.graph.output])
    if rng.random() < 0.5:
        info.type.tensor_type.elem_type = rng.randrange(0, 24)
    else:
        info.name = rng.choice(("", "absent", info.name + "2"))


def _initializer(rng: random.Random, model: Any) -> None:
    tensor = rng.choice(model.graph.initializer)
    way = rng.randrange(4)
    if way == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_SIZES)
    elif way == 1:
        tensor.data_type = rng.randrange(0, 24)
    elif way == 2:
        tensor.raw_data = mutate_bytes.mutated(rng, tensor.raw_data)
    else:
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../absent", "absent", "manifest.json", ""))


def _version(rng: random.Random, model: Any) -> None:
    if rng.random() < 0.5:
        model.ir_version = rng.choice((0, 1, 3, 99, 2**31))
    else:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 13, 99))


_WAYS = (_operator, _input, _input, _output, _drop, _attribute, _attribute, _shape, _type, _initializer, _initializer, _version)
