"""The operator table against what NVIDIA's documentation says of chosen operators, and against the real parser."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.tensorrt import PARSERS, RELEASES, check, parse_with_rtx, release_of, require
from export.tensorrt.nodes import why_not
from runtime.core.errors import ExportError
from runtime.engine import trt_api as trt


def model(
    op: str,
    shape: tuple | list = (2, 8),
    kind: str = "FLOAT",
    opset: int = 20,
    inputs: dict | None = None,
    outputs: int = 1,
    **attributes,
):
    """A model of one node `compress/it`; `inputs` are constants after the data input."""
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (inputs or {}).items()]
    names = ["y", "z"][:outputs]
    node = helper.make_node(op, ["x", *(inputs or {})], names, name="compress/it", **attributes)
    return wrap([node], shape, kind, constants, opset, names)


def wrap(nodes, shape=(2, 8), kind="FLOAT", constants=(), opset=20, names=("y",), functions=()):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", getattr(TensorProto, kind), shape)],
        [onnx.ValueInfoProto(name=name) for name in names],
        constants,
    )
    domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(function.domain, 1) for function in functions)]
    return helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=10)


def why(made: onnx.ModelProto, release: str = "10.3") -> str:
    found = check(made, release)
    assert len(found) <= 1
    return found[0].why if found else ""


class TestTable:
    def test_known_releases(self) -> None:
        assert RELEASES == ("10.3", "10.13", "10.15", "11.1")
        assert [PARSERS[release].max_opset for release in RELEASES] == [20, 22, 24, 24]
        assert len(PARSERS["10.3"].operators) == 150
        for older, newer in itertools.pairwise(RELEASES):
            assert PARSERS[older].operators.keys() <= PARSERS[newer].operators.keys()

    @pytest.mark.parametrize(
        ("version", "release"),
        [("10.3", "10.3"), ("10.3.0.30", "10.3"), ("10.7", "10.3"), ("10.13.3", "10.13"), ("10.16", "10.15"), ("11.0", "10.15")],
    )
    def test_versions_between_take_the_older_table(self, version: str, release: str) -> None:
        assert release_of(version) == release

    @pytest.mark.parametrize("version", ["11", "11.x", "11.4"])
    def test_a_bare_major_is_its_newest(self, version: str) -> None:
        assert release_of(version) == "11.1"

    @pytest.mark.parametrize("version", ["8.6", "10.2", "9", "12", "12.0", "jetpack", ""])
    def test_an_unknown_version_names_the_known_ones(self, version: str) -> None:
        with pytest.raises(ExportError, match=r"known: 10\.3, 10\.13, 10\.15, 11\.1"):
            release_of(version)

    @pytest.mark.parametrize(
        ("op", "first"),
        [
            ("Attention", "10.15"),
            ("RMSNormalization", "10.15"),
            ("TensorScatter", "10.15"),
            ("Swish", "11.1"),
            ("HannWindow", "10.13"),
        ],
    )
    def test_operators_appear_with_their_release(self, op: str, first: str) -> None:
        have = [release for release in RELEASES if op in PARSERS[release].operators]
        assert have == list(RELEASES[RELEASES.index(first) :])

    @pytest.mark.parametrize("op", ["DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "Det", "Unique", "Compress", "DFT"])
    def test_operators_that_no_release_supports(self, op: str) -> None:
        assert not any(op in parser.operators for parser in PARSERS.values())


class TestCheck:
    def test_a_supported_graph(self) -> None:
        assert check(model("Tanh"), "10.3") == []
        require(model("Tanh"), "10.3")

    def test_the_opset_is_checked(self) -> None:
        assert "opsets 9 to 20" in why(model("Tanh", opset=23))
        assert why(model("Tanh", opset=24), "11.1") == ""
        assert "9 to 24" in why(model("Tanh", opset=8), "11.1") and why(model("Tanh", opset=9), "11.1") == ""
        with pytest.raises(ExportError, match=r"TensorRT 10\.3 .*opset 23: .*--tensorrt 10\.15"):
            require(model("Tanh", opset=23), "10.3")

    def test_an_unknown_operator_is_named(self) -> None:
        found = check(model("Det", shape=[2, 2]), "10.3")
        assert (found[0].node, found[0].op) == ("compress/it", "Det")
        assert "10.3" in found[0].why

    def test_a_type_that_the_operator_lacks(self) -> None:
        assert why(model("Relu", kind="INT64")) == ""
        assert re.fullmatch("x is INT64.*BF16, FP16, FP32", why(model("Softmax", kind="INT64")))
        assert why(model("Gather", kind="BOOL", inputs={"i": np.array([0])})) == ""
        assert "x is BOOL" in why(model("ScatterND", kind="BOOL", inputs={"i": np.array([[0]]), "u": np.zeros((1, 8), bool)}))

    def test_the_type_of_an_inner_tensor_is_inferred(self) -> None:
        nodes = [helper.make_node("Cast", ["x"], ["t"], to=TensorProto.INT64), helper.make_node("Exp", ["t"], ["y"], name="late")]
        (found,) = check(wrap(nodes), "10.3")
        assert found.node == "late" and "t is INT64" in found.why

    def test_double_is_named_but_a_cast_away_from_it_is_fine(self) -> None:
        assert "x is DOUBLE" in why(model("Exp", kind="DOUBLE"))
        assert why(model("Cast", kind="DOUBLE", to=TensorProto.FLOAT)) == ""

    def test_where_is_judged_by_its_branches(self) -> None:
        node = helper.make_node("Where", ["x", "a", "a"], ["y"], name="w")
        for values, message in ((np.zeros((2, 8), np.float32), ""), (np.zeros((2, 8), np.int8), "a is INT8")):
            assert message in why(wrap([node], kind="BOOL", constants=[numpy_helper.from_array(values, "a")]))

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (model("OneHot", kind="INT8", inputs={"depth": np.int64(3), "values": np.zeros(2, np.float32)}), ""),
            (model("OneHot", kind="INT64", inputs={"depth": np.int64(3), "values": np.zeros(2, np.int8)}), "values is INT8"),
            (model("EyeLike", kind="INT8", dtype=TensorProto.FLOAT), ""),
            (model("EyeLike", kind="FLOAT", dtype=TensorProto.INT8), "y is INT8"),
            (model("ConstantOfShape", [2], "INT64", value=numpy_helper.from_array(np.zeros(1, np.int8))), "y is INT8"),
            (model("ConstantOfShape", [2], "INT64"), ""),
            (model("Cast", kind="FLOAT", to=TensorProto.INT16), "y is INT16"),
            (model("Cast", kind="INT16", to=TensorProto.FLOAT), "x is INT16"),
            (wrap([helper.make_node("RandomNormal", [], ["y"], shape=[2, 8])]), ""),
        ],
    )
    def test_which_tensor_s_type_an_operator_is_judged_by(self, made: onnx.ModelProto, message: str) -> None:
        assert why(made).startswith(message) if message else why(made) == ""

    @pytest.mark.parametrize(("k", "message"), [(3840, ""), (3841, "K is 3841; expected at most 3840")])
    def test_top_k_has_a_limit(self, k: int, message: str) -> None:
        assert why(model("TopK", shape=[1, 5000], inputs={"k": np.array([k])}, outputs=2)) == message

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (model("TopK", inputs={"k": np.array([1])}, outputs=2, sorted=0), "sorted must be 1"),
            (model("ScatterND", inputs={"i": np.array([[0]]), "u": np.ones((1, 8), np.float32)}, reduction="add"), 'reduction is "add"'),
            (model("LayerNormalization", inputs={"s": np.ones(8, np.float32)}, outputs=1), ""),
            (model("MaxPool", shape=[1, 2, 8, 8], kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
            (model("MaxPool", shape=[1, 2, 8, 8], kernel_shape=[2, 2], dilations=[1, 2]), "dilations must all be 1"),
            (model("MaxPool", shape=[1, 2, 8, 8], kernel_shape=[2, 2], dilations=[1, 1]), ""),
            (model("AveragePool", shape=[1, 2, 8, 8, 8], kernel_shape=[2, 2, 2]), ""),
            (model("AveragePool", shape=[1, 2, 4, 4, 4, 4], kernel_shape=[2] * 4), "its input has 6 dimensions"),
            (model("LpPool", shape=[1, 2, 8], kernel_shape=[2]), ""),
            (model("MaxPool", shape=[1, 2, 8, 8], kernel_shape=[2, 2], outputs=2), "first output"),
            (model("AveragePool", shape=[1, 2, 8], kernel_shape=[2]), "only 2D and 3D"),
            (model("Resize", shape=[1, 1, 4, 4], inputs={"r": np.array([], np.float32), "s": np.ones(4, np.float32)}, mode="cubic"), "mode is cubic"),
            (model("Resize", shape=[1, 1, 4, 4], inputs={"r": np.array([], np.float32), "s": np.ones(4, np.float32)}, mode="linear", antialias=1), "antialias is 1"),
            (model("Resize", shape=[1, 1, 4, 4], inputs={"r": np.array([], np.float32), "s": np.ones(4, np.float32)}, mode="linear"), ""),
            (model("QuantizeLinear", inputs={"s": np.float32(1), "z": np.int8(3)}), "zero point"),
            (model("QuantizeLinear", inputs={"s": np.float32(1), "z": np.int8(0)}), ""),
            (model("DequantizeLinear", kind="INT8", inputs={"s": np.float32(1), "z": np.int8(1)}), "zero point"),
            (model("AveragePool", shape=None, kernel_shape=[2]), ""),  # of how many dimensions is not known
        ],
    )  # fmt: skip
    def test_limits_of_single_operators(self, made: onnx.ModelProto, message: str) -> None:
        assert (message in why(made)) if message else why(made) == ""

    def test_axes_that_are_computed(self) -> None:
        nodes = [
            helper.make_node("Shape", ["x"], ["axes"], start=1, end=2),
            helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="r"),
        ]
        assert why(wrap(nodes)) == "its axes must be a constant"
        constant = [
            helper.make_node("Constant", [], ["axes"], value_ints=[1]),
            helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="r"),
        ]
        assert why(wrap(constant)) == ""

    def test_attention_that_keeps_its_own_cache(self) -> None:
        names = ["x", "x", "x", "", "x", "x"]
        made = wrap([helper.make_node("Attention", names, ["y", "p", "q"], name="a")], shape=(1, 2, 4, 8), opset=23)
        assert why(made, "11.1").startswith("past_key is not supported")
        assert why(wrap([helper.make_node("Attention", ["x"] * 3, ["y"], name="a")], shape=(1, 2, 4, 8), opset=23), "11.1") == ""
        assert "4 dimensions" in why(
            wrap([helper.make_node("Attention", ["x"] * 3, ["y"], q_num_heads=2, kv_num_heads=2)], (1, 4, 8), opset=23), "11.1"
        )

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (helper.make_node("Attention", ["x"] * 3, ["y"], softcap=2.0), "softcap"),
            (helper.make_node("Attention", ["x"] * 3, ["y"], qk_matmul_output_mode=1), "softcap"),
            (helper.make_node("Attention", ["x"] * 3, ["y", "p", "q"]), "first output"),
            (helper.make_node("Attention", ["x"] * 3 + ["", "", "x"], ["y"]), "past_value"),
            (helper.make_node("Attention", ["x"] * 3 + [""] * 3 + ["at"], ["y"]), "nonpad_kv_seqlen"),
            (helper.make_node("Attention", ["x"] * 3 + ["table"], ["y"]), "4 dimensions"),
            (helper.make_node("Attention", ["x"] * 4, ["y"]), ""),
            (helper.make_node("RotaryEmbedding", ["x", "table", "table", "narrow"], ["y"]), "position_ids must be INT64"),
            (helper.make_node("RotaryEmbedding", ["x", "table", "table", "at"], ["y"]), ""),
            (helper.make_node("RotaryEmbedding", ["x", "table", "table"], ["y"]), ""),
            (helper.make_node("TensorScatter", ["x", "x", "at"], ["y"]), ""),
            (helper.make_node("TensorScatter", ["x", "x", "at"], ["y"], axis=2), ""),
            (helper.make_node("TensorScatter", ["x", "x", "at"], ["y"], axis=1), "axis must be -2"),
            (helper.make_node("TensorScatter", ["table", "table", "at"], ["y"]), "4 dimensions"),
        ],
    )  # fmt: skip
    def test_limits_of_the_operators_of_a_decoder(self, node: onnx.NodeProto, message: str) -> None:
        constants = {"table": np.zeros((4, 8), np.float32), "at": np.zeros((1, 4), np.int64), "narrow": np.zeros((1, 4), np.int32)}
        values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        said = why_not(ir.from_proto(wrap([node], (1, 2, 4, 8), constants=values, opset=24)).graph[0], "11.1")
        assert (message in said) if message else said is None

    @pytest.mark.parametrize(
        ("op", "input_", "what", "lifted"),
        [("CumSum", 1, "axis", None), ("Squeeze", 1, "axes", None), ("Unsqueeze", 1, "axes", None), ("OneHot", 1, "depth", None),
         ("Pad", 3, "axes", "10.13"), ("ReduceMax", 1, "axes", None), ("ReduceL2", 1, "axes", None), ("ReduceSumSquare", 1, "axes", None)],
    )  # fmt: skip
    def test_what_must_be_constant(self, op: str, input_: int, what: str, lifted: str | None) -> None:
        known = [numpy_helper.from_array(np.array([0]), "known")]
        for name, message in (("known", ""), ("", ""), ("x", f"its {what} must be a constant")):
            made = ir.from_proto(wrap([helper.make_node(op, [*["x"] * input_, name], ["y"])], constants=known))
            for release in RELEASES:
                expected = "" if lifted and RELEASES.index(release) >= RELEASES.index(lifted) else message
                assert (why_not(made.graph[0], release) or "") == expected


class TestWhereNodesHide:
    def function(self, op: str, opset: int = 20) -> onnx.FunctionProto:
        return helper.make_function(
            "gridpool", "NSP", ["a"], ["b"], [helper.make_node(op, ["a"], ["b"], name="inner")], [helper.make_opsetid("", opset)]
        )

    def call(self, op: str, opset: int = 20) -> onnx.ModelProto:
        return wrap(
            [helper.make_node("NSP", ["x"], ["y"], domain="gridpool", name="compress/nsp")], functions=[self.function(op, opset)]
        )

    def test_a_local_function_is_its_body(self) -> None:
        assert check(self.call("Tanh"), "10.3") == []
        found = check(self.call("Det"), "10.3")
        assert [unsupported.op for unsupported in found] == ["Det"]

    def test_types_reach_into_a_function(self) -> None:
        made = self.call("Exp")
        made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
        assert "is INT64" in why(made)

    def test_a_function_of_another_opset_is_checked(self) -> None:
        found = check(self.call("Det", opset=24), "10.3")
        assert [(unsupported.node, unsupported.op) for unsupported in found] == [("NSP", "opset 24"), ("inner", "Det")]

    def test_a_domain_without_a_function_needs_a_plugin(self) -> None:
        made = wrap([helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft", name="m")])
        made.opset_import.add(domain="com.microsoft", version=1)
        assert '"com.microsoft" is not an ONNX domain' in why(made)

    def test_subgraphs_are_checked(self) -> None:
        def branch(op: str) -> onnx.GraphProto:
            return helper.make_graph(
                [helper.make_node(op, ["x"], ["out"], name=f"branch/{op}")], op, [], [onnx.ValueInfoProto(name="out")]
            )

        node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("Tanh"), else_branch=branch("Det"), name="if")
        flag = numpy_helper.from_array(np.array(True), "flag")
        assert [unsupported.node for unsupported in check(wrap([node], constants=[flag]), "10.3")] == ["branch/Det"]


class TestRequire:
    def test_it_names_the_first_node_and_counts_the_others(self) -> None:
        nodes = [helper.make_node("Det", ["x"], [name], name=f"det/{name}") for name in ("y", "z", "w")]
        with pytest.raises(ExportError, match=r"^TensorRT 10\.3 .*node det/y \(Det\): .*\(and 2 more\)") as error:
            require(wrap(nodes, shape=(2, 2), names=("y", "z", "w")), "10.3")
        assert "\n" not in str(error.value)
        assert "export without --tensorrt" in str(error.value) and "(10.3, 10.13, 10.15, 11.1)" in str(error.value)

    def test_the_release_that_supports_it_is_named(self) -> None:
        with pytest.raises(ExportError, match=r"node compress/it \(Swish\): .*--tensorrt 11\.1"):
            require(model("Swish", opset=20), "10.3")

    def test_an_opset_comes_before_the_nodes_that_need_it(self) -> None:
        function = helper.make_function(
            "gridpool", "StGridPool", ["a"], ["b"], [helper.make_node("Tanh", ["a"], ["b"])], [helper.make_opsetid("", 24)]
        )
        made = wrap([helper.make_node("StGridPool", ["x"], ["y"], domain="gridpool")], opset=24, functions=[function])
        with pytest.raises(ExportError, match=r"opset 24: .*9 to 22 .*--tensorrt 10\.15"):
            require(made, "10.13")

    def test_a_weight_past_the_limit_of_protobuf_is_not_read(self) -> None:
        made = model("MatMul")
        made.graph.node[0].input.append("w")
        made.graph.initializer.append(
            TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 2**31], data_location=TensorProto.EXTERNAL)
        )
        made.graph.initializer[0].external_data.add(key="location", value="w.data")
        assert check(made, "10.3") == []


@pytest.mark.skipif(not trt.installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed: pip install .[rtx]")
class TestRealParser:
    @pytest.mark.parametrize("op", ["Tanh", "Relu", "Softmax", "Erf", "Det", "Unique", "Hardmax"])
    def test_the_table_agrees_with_the_parser(self, op: str, tmp_path: Path) -> None:
        made = model(op, shape=[2, 2])
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2] if op != "Det" else []))
        onnx.save(made, tmp_path / "one.onnx")
        errors = parse_with_rtx(tmp_path / "one.onnx")
        assert bool(errors) == bool(check(made, "11.1"))
        assert not errors or errors[0].startswith(f"node compress/it ({op}): ")


def test_without_the_real_parser_there_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trt, "installed", lambda backend: False)
    assert parse_with_rtx(tmp_path / "none.onnx") is None
