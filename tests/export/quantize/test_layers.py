"""Which rows a layer is measured on, and which precision it starts with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from export.quantize import layers
from export.quantize.layers import Layer, find_layers, layer_errors, sampled, with_outputs
from export.quantize.llm import _lowest


def test_rows_are_sampled_from_all_over():
    assert sampled(np.arange(1000)).tolist() == list(range(0, 1000, 4))  # 250: every 4th is the densest within 256
    assert sampled(np.arange(256)).tolist() == list(range(256))
    assert sampled(np.arange(257)).tolist() == list(range(0, 257, 2))


@pytest.mark.parametrize(
    ("shape", "asked", "expected"),
    [
        ((128, 96), "int4", "int4"),
        ((96, 128), "int4", "int8"),  # 96 inputs are no whole number of blocks of 64, and TensorRT takes no remainder
        ((96, 128), "int8", "int8"),
    ],
)
def test_a_block_must_divide_a_layers_inputs(shape, asked, expected):
    assert _lowest(Layer("node", "x", "w", shape), asked, 64) == expected


W = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def model() -> onnx.ModelProto:
    """Products of an activation with a matrix and with other things, of which the second is a layer too."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 3, 8] x, float[8, 4] z) => (float[1, 3, 4] y) {
        a = MatMul(x, w)
        b = MatMul(a, v)
        c = MatMul(x, z)
        d = MatMul(x, cube)
        e = MatMul(w, a2)
        f = Add(a, w)
        g = MatMul(x, w)
        y = Relu(a)
    }"""
    made = onnx.parser.parse_model(text)
    values = {"w": W, "v": np.eye(4, dtype=np.float32), "cube": W[None], "a2": W[:4, :3]}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    names = ("layer/a", "layer/b", "layer/c", "layer/d", "layer/e", "layer/f", "compress/nsp/g", "layer/y")
    for node, name in zip(made.graph.node, names, strict=True):
        node.name = name
    return made


def test_a_layer_is_a_product_of_an_activation_with_a_matrix():
    found = find_layers(model())
    assert found[:2] == [Layer("layer/a", "x", "w", (8, 4)), Layer("layer/b", "a", "v", (4, 4))]
    assert [layer.node for layer in found] == ["layer/a", "layer/b", "layer/e"]


def test_a_layer_s_own_error_is_that_of_its_weight_and_its_input_alone():
    (layer, *_) = found = find_layers(model())[:1]
    x = np.random.default_rng(1).normal(size=(1, 3, 8)).astype(np.float16)

    def error(of_input: float, of_weight: float) -> float:
        scaled = (lambda layer, x: x * of_input), (lambda layer, weight: weight * of_weight)
        return layer_errors(model(), Path(), found, {"x": x}, *scaled)[layer.node]

    assert error(1, 1) == 0
    assert [error(1.5, 1), error(1, 1.5)] == pytest.approx([0.5, 0.5], rel=1e-5)
    assert error(2, 2) == pytest.approx(3, rel=1e-5)
    assert error(1, 0) == pytest.approx(1, rel=1e-5)


def test_outputs_are_added_once_to_a_copy():
    given = model()
    marked = with_outputs(given, ["a", "x", "b", "a", "y"])
    assert [output.name for output in marked.graph.output] == ["y", "a", "b"]
    assert [output.name for output in given.graph.output] == ["y"]


@pytest.mark.parametrize(("most", "external"), [(1024, False), (1023, True)])
def test_large_weights_are_written_beside_the_file_and_old_ones_go(tmp_path, monkeypatch, most, external):
    large = onnx.ModelProto()
    large.CopyFrom(model())
    del large.graph.initializer[:]
    large.graph.initializer.append(numpy_helper.from_array(np.ones(256, np.float32), "w"))  # 1024 bytes
    large.graph.node.append(helper.make_node("Constant", [], ["c"], value=large.graph.initializer[0]))
    monkeypatch.setattr(layers, "INLINE_BYTES", most)
    (tmp_path / "m.onnx.data").write_bytes(b"of an older file")
    written = layers.save(large, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists() == external
    (weight,) = written.graph.initializer
    assert (weight.data_location == onnx.TensorProto.EXTERNAL) == external
    assert written.graph.node[-1].attribute[0].t.raw_data  # an attribute is no weight
    (read,) = layers.with_weights(written, tmp_path).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(read), np.ones(256, np.float32))
