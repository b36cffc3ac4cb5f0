"""Reading a graph's structure: functions stay until they are to be replaced, weights stay where they are, and what is no graph is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from refusal import naming

from runtime.bundle.graph_file import onnx_errors, read_graph
from runtime.core.errors import BundleError, UsageError

FUNCTION = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
g (float[2] x) => (float[2] y) { y = own.Twice(x) }
<domain: "own", opset_import: ["" : 20]> Twice (a) => (b) { b = Add(a, a) }"""
PLAIN = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) <float[2] w = {3.0, 4.0}> { y = Mul(x, w) }'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


def test_functions_are_replaced_only_where_it_is_asked_for(path):
    onnx.save(onnx.parser.parse_model(FUNCTION), str(path))
    for inline, operators, functions in ((None, ["Twice"], 1), (False, ["Twice"], 1), (True, ["Add"], 0)):
        model = read_graph(path) if inline is None else read_graph(path, inline)
        assert [node.op_type for node in model.graph.node] == operators and len(model.functions) == functions


def test_a_graph_without_functions_is_not_inlined(path, monkeypatch):
    onnx.save(onnx.parser.parse_model(PLAIN), str(path))

    def fail(model: onnx.ModelProto) -> None:
        raise AssertionError("not reached")

    monkeypatch.setattr("onnx.inliner.inline_local_functions", fail)
    assert [node.op_type for node in read_graph(path, inline=True).graph.node] == ["Mul"]


def test_weights_stay_unread(path):
    model = onnx.parser.parse_model(PLAIN)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([3, 4]), "w"))
    onnx.save_model(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    path.with_name("m.data").unlink()
    (weight,) = read_graph(path).graph.initializer
    assert weight.data_location == onnx.TensorProto.EXTERNAL and not weight.raw_data


@pytest.mark.parametrize("field", ["name", "op_type", "input", "output"])
def test_a_name_that_is_not_text_is_refused(path, field):
    model = onnx.parser.parse_model(PLAIN)
    node = model.graph.node[0]
    if field in ("name", "op_type"):
        setattr(node, field, "QQQQ")
    else:
        getattr(node, field)[0] = "QQQQ"
    path.write_bytes(model.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xff\xfe"))
    with pytest.raises(BundleError, match=naming(path, "ONNX")):
        read_graph(path)


def test_what_the_package_raises_is_one_line_and_our_own_errors_stay(path):
    with pytest.raises(BundleError) as raised, onnx_errors(path):
        raise ValueError("a\n  b " + "x" * 600)
    assert naming(path, "ONNX", f"ValueError: a b {'x' * 484}").match(str(raised.value))
    for error in (UsageError("ours"), ImportError("no onnx"), KeyboardInterrupt()):
        with pytest.raises(type(error)), onnx_errors(path):
            raise error
    with pytest.raises(BundleError, match=naming(path, "ONNX")):
        read_graph(path)
