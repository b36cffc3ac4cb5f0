"""Operations and bytes of graphs that are small enough to count by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.tools import work

HEAD_DIM, KV_HEADS, HIDDEN = 2, 3, 4


@pytest.fixture
def decoder(tmp_path: Path):
    """A bundle of one layer: 40 weights before its cache, 56 behind it, all float32 in the file."""
    sizes = {"wq": (4, 4), "wv": (4, 6), "wo": (4, 4), "head": (4, 10)}
    products = {"wq": ("x", "q"), "wv": ("x", "v"), "wo": ("q", "o"), "head": ("o", "logits")}
    nodes = [helper.make_node("MatMul", [source, weight], [target]) for weight, (source, target) in products.items()]
    nodes.insert(2, helper.make_node("Identity", ["v"], ["present.0.value"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "S", HIDDEN])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("present.0.value", "logits")]
    weights = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], outputs, weights), opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "llm").mkdir()
    onnx.save(model, tmp_path / "llm" / "decoder.onnx")
    llm = {"layers": 1, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}

    def of(precision: str) -> SimpleNamespace:
        manifest = SimpleNamespace(llm=llm, llm_precision=precision, hidden_size=HIDDEN)
        return SimpleNamespace(manifest=manifest, model=lambda graph: tmp_path / f"{graph}.onnx")

    return of


@pytest.mark.parametrize(
    ("precision", "floats", "itemsize"), [("fp32", "fp32", 4), ("fp16", "fp16", 2), ("int8", "fp32", 4), ("int4", "fp32", 4)]
)
def test_a_token_reads_all_weights_and_the_cache_of_what_came_before(decoder, precision, floats, itemsize):
    row = (HEAD_DIM * KV_HEADS) * 2 * itemsize  # a key and a value
    got = work.decode_work(decoder(precision), 300)
    assert got == work.Work({floats: 2 * (40 + 56) + 4 * 300 * HIDDEN}, 4 * (40 + 56) + 300 * row)
    prefill = work.prefill_work(decoder(precision), 700)  # in chunks that end at 256, 512 and 700; one query each in the last layer
    assert prefill.operations == {floats: 2 * (40 * 700 + 56 * 3) + 4 * (256 + 512 + 700) * HIDDEN}
    assert prefill.bytes == 4 * (40 + 56) * 3 + (256 + 512 + 700) * row


def test_shapes_are_those_whose_every_length_is_known():
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    g (float[2, 4] x, float[S, 3] n) => (float[2, 5] y, float[S, 3] m, float[2, T] t) <float[2, 3] known, float[U, 3] unknown> {
        w = DequantizeLinear(w8, scale, zero)
        y = MatMul(x, w)
        m = Neg(n)
        other = DequantizeLinear(m8, scale, zero)
    }""")
    arrays = {"w8": np.ones((4, 5), np.int8), "scale": np.float32(1), "zero": np.int8(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items())
    assert work._shapes(model.graph) == {
        "w8": (4, 5), "scale": (), "zero": (), "x": (2, 4), "y": (2, 5), "known": (2, 3), "w": (4, 5),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "size"), [("FLOAT", 4), ("FLOAT16", 2), ("INT8", 1), ("INT4", 0.5), ("UINT4", 0.5), ("BOOL", 1)])
def test_bytes_of_an_element(kind, size):
    assert work._bytes(getattr(TensorProto, kind)) == size
