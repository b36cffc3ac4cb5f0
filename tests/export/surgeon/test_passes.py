"""run_passes and names, on modules that torch's exporter traced."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from refusal import naming
from surgeon_graphs import model_from_text, normal, ops, rewrite, run
from torch import nn

from export.surgeon import ON_REQUEST, PASSES, PassReport, run_passes
from export.surgeon.names import DECODER_RULES, VISION_RULES, path_of_scope
from runtime.bundle.manifest import written
from runtime.core.errors import ExportError


class _Pyramid(nn.Module):
    """A compress-like module: a ModuleDict of levels, a norm, a softmax."""

    def __init__(self):
        super().__init__()
        self.ptg = nn.Module()
        self.ptg.level = nn.ModuleDict({"1": nn.Linear(16, 16, bias=False)})
        self.nsp = _Pool()

    def forward(self, x):
        return self.nsp(self.ptg.level["1"](x))


class _Pool(nn.Module):
    def forward(self, x):
        weights = torch.softmax(x.float().norm(dim=-1), dim=-1)
        return (x * weights[..., None]).sum(1).to(x.dtype)


class _Vision(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import SiglipVisionConfig, SiglipVisionModel

        torch.manual_seed(0)
        config = SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        )
        config._attn_implementation = "sdpa"
        tower = SiglipVisionModel(config)
        self.encoder = nn.Module()
        self.encoder.layers = getattr(tower, "vision_model", tower).encoder.layers
        self.projector = nn.Linear(16, 16)
        self.compress = _Pyramid()
        self.newline = nn.Parameter(torch.ones(1, 16))

    def forward(self, x):
        for layer in self.encoder.layers:
            x = layer(x, None)
        return torch.cat([self.compress(self.projector(x)), self.newline])


@pytest.fixture(scope="module")
def traced() -> dict[str, onnx.ModelProto]:
    vision = _Vision().eval()
    models = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        args = (torch.zeros(3, 4, 16, dtype=dtype),)
        program = torch.onnx.export(
            vision.to(dtype), args, dynamo=True, opset_version=20, input_names=["x"], output_names=["y"], verbose=False
        )
        models[precision] = program.model_proto
    return models


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_all_passes_on_a_traced_siglip_leave_the_numbers(traced, precision):
    dtype = np.float32 if precision == "fp32" else np.float16
    after, reports = rewrite(
        _copy(traced[precision]), None, {"x": normal(3, 4, 16, dtype=dtype)}, precision=precision, tolerance=2e-3
    )
    assert [report.name for report in reports] == [name for name in PASSES if name not in ON_REQUEST]
    assert not any(node.metadata_props for node in after.graph.node), "stack traces of the export host"


def test_names_say_where_a_node_comes_from(traced):
    after, _ = run_passes(_copy(traced["fp32"]), graph="vision")
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    for name in (
        "vision/encoder/layer.1/self_attn/q_proj/MatMul",
        "vision/encoder/layer.0/layer_norm1/LayerNormalization",
        "vision/encoder/layer.1/mlp/fc2/Add",
        "vision/projector/MatMul",
        "compress/ptg/level.1/MatMul",
        "compress/nsp/Softmax",
        "vision/Concat",
    ):
        assert name in names
    assert names.count("vision/encoder/layer.0/Add") == names.count("vision/encoder/layer.0/Add_2") == 1
    for node in after.graph.node:
        assert list(node.output) in ([node.name], ["y"])
    initializers = {tensor.name for tensor in after.graph.initializer}
    assert {"newline", "encoder.layers.0.mlp.fc1.bias", "vision/encoder/layer.0/mlp/fc1/MatMul/weight"} <= initializers
    assert not any(name.startswith(("val_", "node_")) for name in initializers | set(names))


def test_the_same_trace_gives_the_same_bytes(traced):
    first, second = (run_passes(_copy(traced["fp32"]), graph="vision")[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("scope", "rules", "path"),
    [
        ("encoder.layers.11.self_attn", VISION_RULES, "vision/encoder/layer.11/self_attn"),
        ("projector.linear_1", VISION_RULES, "vision/projector/linear_1"),
        ("compress.ptg.level.2", VISION_RULES, "compress/ptg/level.2"),
        ("compress", VISION_RULES, "compress"),
        ("compression_head", VISION_RULES, "vision/compression_head"),
        ("", VISION_RULES, "vision"),
        ("layers.0.mlp.gate_proj", DECODER_RULES, "llm/layer.0/mlp/gate_proj"),
        ("lm_head", DECODER_RULES, "llm/lm_head"),
        ("", DECODER_RULES, "llm"),
        ("a.layers.0", ((r"^a", "b"),), "b/layer.0"),
    ],
)
def test_path_of_scope(scope, rules, path):
    assert path_of_scope(scope, rules) == path


def test_a_node_with_a_readable_name_and_no_scope_keeps_it_and_nobody_else_gets_it():
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x)\n b = Neg(a)\n y = Neg(b) }")
    model.graph.node[1].name = "vision/Neg"
    after, (report,) = run_passes(model, ["names"], graph="vision")
    assert [node.name for node in after.graph.node] == ["vision/Relu", "vision/Neg", "vision/Neg_2"]
    assert report.rewrites == 4 and naming(3).match(report.note)  # two nodes, a and b; all three nodes have a name
    assert [node.output[0] for node in after.graph.node] == ["vision/Relu", "vision/Neg", "y"]


def test_constants_of_the_exporter_are_named_after_what_they_are_to_their_reader():
    model = model_from_text(
        """g (float[4, 6] x) => (float[3, 4] y) <int64[1] val_1 = {0}, int64[1] val_2 = {4}, int64[1] val_3 = {0}, int64[1] val_4 = {1},
            float val_5 = {-1.0}, float val_6 = {1.0}, int64[2] val_7 = {2, 4}, int64[1] val_8 = {1}, int64[2] val_9 = {3, 4}> {
        a = Slice(x, val_1, val_2, val_3, val_4)
        b = Clip(a, val_5, val_6)
        c = MatMul(b, val_10)
        d = Gemm(c, val_11, val_12)
        e = Reshape(d, val_7)
        f = Gather(e, val_8)
        y = Expand(f, val_9)
    }""",
        val_10=normal(6, 3),
        val_11=normal(3, 2),
        val_12=normal(2),
    )
    for node in model.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", "net", "op"]))
    after, _ = rewrite(model, ["names"], {"x": normal(4, 6)})
    roles = {
        "Slice": ["starts", "ends", "axes", "steps"], "Clip": ["constant", "constant_2"], "MatMul": ["weight"], "Gemm": ["weight", "bias"],
        "Reshape": ["shape"], "Gather": ["indices"], "Expand": ["shape"],
    }  # fmt: skip
    for node in after.graph.node:
        assert node.name == f"vision/net/{node.op_type}"
        assert node.input[1:] == [f"{node.name}/{role}" for role in roles[node.op_type]]


def test_local_functions_survive_all_passes():
    body = [helper.make_node("Mul", ["a", "a"], ["square"]), helper.make_node("Sqrt", ["square"], ["b"])]
    function = helper.make_function("gridpool", "magnitude", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y) {
        a = Identity(x)
        c = Relu(a)
        y = Neg(c)
    }""")
    model.graph.node[1].op_type, model.graph.node[1].domain = "magnitude", "gridpool"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("gridpool", 1))
    before = _copy(model)
    after, _ = run_passes(model, graph="vision")
    assert ops(after) == ["Identity", "magnitude", "Neg"]
    assert [(f.domain, f.name, [n.op_type for n in f.node]) for f in after.functions] == [
        ("gridpool", "magnitude", ["Mul", "Sqrt"])
    ]
    np.testing.assert_array_equal(run(after, {"x": normal(2, 3)})[0], run(before, {"x": normal(2, 3)})[0])


def test_what_graph_surgeon_would_lose_of_the_model_is_kept():
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.metadata_props.add(key="made by", value="a test")
    model.doc_string = "words"
    after, _ = run_passes(model, graph="vision")
    assert (after.ir_version, after.opset_import[0].version, after.doc_string) == (10, 20, "words")
    assert [(prop.key, prop.value) for prop in after.metadata_props] == [("made by", "a test")]


def test_a_required_pass_that_finds_nothing_is_an_error_that_says_what_it_saw():
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(ExportError, match=naming("vision", '"int64"', "Relu")):
        run_passes(model, ["int64"], graph="vision", required=["int64"])


def test_an_unknown_pass_and_a_graph_of_another_precision_are_errors():
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(ExportError, match=naming('"nams"', '"names"')):
        run_passes(model, ["nams"], graph="vision")
    with pytest.raises(ExportError, match=naming('"int46"', '"int64"')):
        run_passes(model, [], graph="vision", required=["int46"])
    with pytest.raises(ExportError, match=naming("vision", "0 tensors", "float16", "fp16")):
        run_passes(model, graph="vision", precision="fp16")
    half = model_from_text("g (float16[2] x) => (float16[2] y) { y = Relu(x) }")
    with pytest.raises(ExportError, match=naming("vision", "2 tensors", "float16", "fp32")):
        run_passes(half, graph="vision", precision="fp32")


def test_passes_run_in_their_own_order_and_report_as_the_manifest_wants():
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Identity(x)\n y = Relu(a) }")
    _, reports = run_passes(model, ["int64", "names"], graph="vision")
    assert [report.name for report in reports] == ["names", "int64"]
    assert written(PassReport("vision", "names", 1, "n")) == {"graph": "vision", "pass": "names", "rewrites": 1, "note": "n"}
