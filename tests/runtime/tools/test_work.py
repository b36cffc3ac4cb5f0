"""Operations and bytes of graphs that are small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from manifests import bundle_of
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import Bundle
from runtime.bundle.manifest import LLMInfo
from runtime.tools import work

LAYERS, HEAD_DIM, KV_HEADS, HIDDEN = 2, 5, 3, 4


@pytest.fixture
def decoder(tmp_path: Path):
    """A bundle of two layers: 40 weights before the last one's cache, 56 behind it, all float32 in the file."""
    sizes = {"wq": (4, 4), "wv": (4, 6), "wo": (4, 4), "head": (4, 10)}
    products = {"wq": ("x", "q"), "wv": ("x", "v"), "wo": ("q", "o"), "head": ("o", "logits")}
    nodes = [helper.make_node("MatMul", [source, weight], [target]) for weight, (source, target) in products.items()]
    nodes.insert(2, helper.make_node("Identity", ["v"], ["present.1.value"]))
    nodes.insert(0, helper.make_node("Identity", ["x"], ["present.0.value"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "S", HIDDEN])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("present.0.value", "present.1.value", "logits")
    ]
    weights = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], outputs, weights), opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "llm").mkdir()
    onnx.save(model, tmp_path / "llm" / "decoder.onnx")
    llm = LLMInfo(LAYERS, KV_HEADS, HEAD_DIM)

    def of(precision: str) -> Bundle:
        return bundle_of("llm/decoder.onnx", path=tmp_path, llm=replace(llm, precision=precision), hidden_size=HIDDEN)

    return of


@pytest.mark.parametrize(
    ("precision", "floats", "itemsize"), [("fp32", "fp32", 4), ("fp16", "fp16", 2), ("int8", "fp32", 4), ("int4", "fp32", 4)]
)
def test_a_token_reads_all_weights_and_the_cache_of_what_came_before(decoder, precision, floats, itemsize):
    row = LAYERS * (HEAD_DIM * KV_HEADS) * 2 * itemsize  # a key and a value
    got = work.decode_work(decoder(precision), 300)
    assert got == work.Work({floats: 2 * (40 + 56) + 4 * 300 * LAYERS * HIDDEN}, 4 * (40 + 56) + 300 * row)
    prefill = work.prefill_work(decoder(precision), 700)  # in chunks that end at 256, 512 and 700
    scores = 256 * 256 + 256 * 512 + 188 * 700 + (256 + 512 + 700)  # of the first layer, and of one query a chunk in the last
    assert prefill.operations == {floats: 2 * (40 * 700 + 56 * 3) + 4 * scores * HIDDEN}
    assert prefill.bytes == 4 * (40 + 56) * 3 + (256 + 512 + 700) * row


@pytest.mark.parametrize(("positions", "chunks"), [(1, [1]), (256, [256]), (257, [256, 257]), (512, [256, 512])])
def test_a_prompt_runs_in_as_few_chunks_as_hold_it(decoder, positions, chunks):
    row = LAYERS * (HEAD_DIM * KV_HEADS) * 2 * 4
    assert work.prefill_work(decoder("fp32"), positions).bytes == 4 * (40 + 56) * len(chunks) + sum(chunks) * row


@pytest.mark.parametrize(
    ("operator", "shapes", "expected"),
    [
        ("MatMul", {"a": (2, 3, 4), "b": (4, 5), "y": (2, 3, 5)}, 2 * 30 * 4),
        ("Gemm", {"a": (3, 4), "b": (4, 5), "y": (3, 5)}, 2 * 15 * 4),
        ("Conv", {"a": (1, 3, 8, 8), "b": (6, 3, 2, 2), "y": (1, 6, 4, 4)}, 2 * 96 * 12),
        ("MatMul", {"a": (3, 4), "y": (3, 5)}, 0),  # of one that is not known
        ("Gemm", {"b": (4, 5), "y": (3, 5)}, 0),
        ("MatMul", {"a": (3, 4), "b": (4, 5)}, 0),
        ("Conv", {"a": (1, 3, 8, 8), "b": (6, 3, 2, 2)}, 0),
        ("Add", {"a": (3, 4), "b": (3, 4), "y": (3, 4)}, 0),
    ],
)
def test_operations_are_two_a_multiply_add_of_a_product(operator, shapes, expected):
    assert work._operations(helper.make_node(operator, ["a", "b", "bias"], ["y"]), shapes) == expected


@pytest.mark.parametrize(("precision", "floats", "itemsize"), [("fp32", "fp32", 4), ("fp16", "fp16", 2)])
def test_a_clip_is_read_once_and_its_features_are_written_and_read(tmp_path, precision, floats, itemsize):
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    g (uint8[2, 8] x) => (float[2, 5] y) { a = Cast <to = 1> (x) y = MatMul(a, w) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 5), np.float16), "w"))
    onnx.save(model, tmp_path / "vision.onnx")
    manifest = SimpleNamespace(precision=precision, patch_tokens=3, hidden_size=7)
    got = work.vision_work(SimpleNamespace(model=lambda graph: tmp_path / f"{graph}.onnx", manifest=manifest))
    assert got == work.Work({floats: 2 * 2 * 5 * 8}, 2 * 40 + 16 + 2 * 3 * 7 * itemsize)


def test_a_product_of_two_activations_or_of_dequantised_ones_is_no_weight():
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    g (int8[4, 5] x8) => (float[4, 5] y) { w = DequantizeLinear(w8, scale) x = DequantizeLinear(x8, scale) y = Add(x, w) }""")
    arrays = {"w8": np.ones((4, 5), np.int8), "scale": np.float32(1)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items())
    assert work._stored(model.graph) == {"w8", "scale", "w"}
