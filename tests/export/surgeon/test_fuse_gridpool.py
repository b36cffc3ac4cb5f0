"""fuse_gridpool: compression as one call with a plain body, lossless for every reader that runs the body, and declined in words."""

from __future__ import annotations

import copy
import functools
import io

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from refusal import naming
from surgeon_graphs import model_from_text

from export.compress import make
from export.surgeon import fuse_gridpool, run_passes
from export.surgeon.graph import Context, graph_from_model
from plugins.op import spec_from_text
from plugins.reference import st_gridpool
from plugins.tensorrt import drop_body

SPEC = "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2"
OF_SPEC = {"sizes": [4, 4, 4], "strides": [2, 4, 8], "window": 2, "temperature": 1.0, "order": 2.0, "padding": 0}
SHAPE = (8, 6, 6, 16)
# Of 8 frames, level 1 (stride 2) puts 1, 3, 5 and 7 together as a summary in place of frame 7, and levels 2 and 3 find too few frames.
# The summary, version 8, shows the four in 2x2 tiles of 3x3 cells; the first launch pools them, with their windows where these are shown, and
# the second has the other windows, the summary's last. The format is that of plugins/plan.py, written out by hand.
PLAN = [
    *(2, 8, 6, 6, 3, 3, 2, 0), *(2, 9, 1, 4, 4, 36),
    *(0, 4, 9),
    *(2, 1, 1, 0), *(2, 3, 3, 1), *(2, 5, 5, 2), *(1, 3, 7, 0),
    *(0, 0, 0, 0), *(0, 2, 2, 0), *(0, 4, 4, 0), *(0, 6, 6, 0), *(0, 7, 8, 0),
    *(2, 3, 3, 0),
    *(0, 1, 2, 3),
    *(1, 3, 3, 0), *(3, 3, 3, 9), *(5, 3, 3, 18), *(7, 3, 3, 27),
]  # fmt: skip


class _Vision(torch.nn.Module):
    def __init__(self, spec: str, shape: tuple[int, ...]):
        super().__init__()
        self.compress = make(spec, frames=shape[0], height=shape[1], width=shape[2])
        self.scale = torch.nn.Parameter(torch.full((shape[3],), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compress(x * self.scale) + 1


@functools.cache
def traced(spec: str = SPEC, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    x = torch.zeros(shape, dtype=dtype)
    with torch.no_grad():
        program = torch.onnx.export(_Vision(spec, shape).to(dtype).eval(), (x,), dynamo=True, opset_version=20, verbose=False)
    stream = io.BytesIO()
    onnx.save(program.model_proto, stream)
    return run_passes(onnx.load_from_string(stream.getvalue()), graph="vision")[0]


def fuse(model: onnx.ModelProto, spec: str = SPEC) -> tuple[onnx.ModelProto, str, int]:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    fused, (report,) = run_passes(copied, ["fuse_gridpool"], graph="vision", compression=spec)
    return fused, report.note, report.rewrites


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    return traced()


@pytest.fixture(scope="module")
def fused(plain: onnx.ModelProto) -> onnx.ModelProto:
    model, note, rewrites = fuse(plain)
    assert rewrites == 1
    assert naming("gridpool::StGridPool").match(note)
    onnx.checker.check_model(model, full_check=True)
    return model


def clip(shape: tuple[int, ...] = SHAPE, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def test_the_call_carries_the_op_its_plan_and_the_plugins_name(fused: onnx.ModelProto):
    (call,) = [node for node in fused.graph.node if node.domain == "gridpool"]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in call.attribute}
    assert (call.op_type, attributes["plugin_namespace"], attributes["plugin_version"]) == ("StGridPool", b"gridpool", b"1")
    assert {name: attributes[name] for name in OF_SPEC} == OF_SPEC
    assert attributes["plan"] == PLAN
    assert set(fused.functions[0].attribute) == set(attributes)
    assert len(fused.graph.node) < 6
    assert all(
        value.name not in {o for n in fused.functions[0].node for o in n.output} - set(call.output)
        for value in fused.graph.value_info
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_onnx_runtime_computes_the_same_bits(dtype: type):
    plain = traced() if dtype == np.float32 else traced(dtype=torch.float16)
    fused, _, _ = fuse(plain)
    x = clip(dtype=dtype)
    got = run(fused, x)
    assert np.array_equal(got, run(plain, x))
    reference = st_gridpool(x * dtype(1.5), spec_from_text(SPEC)).reshape(got.shape) + 1
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-2)


def test_inlining_gives_the_plain_graph_back(plain: onnx.ModelProto, fused: onnx.ModelProto):
    inlined = onnx.inliner.inline_local_functions(fused)

    def without_constants(model: onnx.ModelProto) -> list[str]:
        return sorted(node.op_type for node in model.graph.node if node.op_type != "Constant")

    assert without_constants(inlined) == without_constants(plain)
    x = clip()
    assert np.array_equal(run(inlined, x), run(plain, x))


def test_tensorrt_rtx_parses_and_builds_the_body(fused: onnx.ModelProto, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from runtime.engine import trt_api as trt

    path = tmp_path / "fused.onnx"
    onnx.save(fused, str(path))
    builder, network, _parser = trt.parse("tensorrt-rtx", path)
    names = [network.get_layer(i).name for i in range(network.num_layers)]
    assert network.num_layers > 20, names
    assert tuple(network.get_output(0).shape) == (8 * 3 * 3, 16)
    config = builder.create_builder_config()
    assert trt.serialize("tensorrt-rtx", builder, network, config, lambda *_: None)


def test_polygraphy_loads_and_runs_it(fused: onnx.ModelProto, plain: onnx.ModelProto, tmp_path):
    from polygraphy.backend.onnx import BytesFromOnnx, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    path = tmp_path / "fused.onnx"
    onnx.save(fused, str(path))
    x = clip()
    with OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(OnnxFromPath(str(path))))) as runner:
        got = next(iter(runner.infer({fused.graph.input[0].name: x}).values()))
    assert np.array_equal(got, run(plain, x))


def test_without_its_body_only_a_plugin_can_run_it(fused: onnx.ModelProto, tmp_path):
    bare = copy.deepcopy(fused)
    assert drop_body(bare) and not bare.functions
    assert [node.op_type for node in bare.graph.node] == [node.op_type for node in fused.graph.node]
    with pytest.raises(Exception, match="StGridPool"):
        run(bare, clip())
    assert not drop_body(bare)


@pytest.mark.parametrize(
    ("spec", "shape", "named"),
    [
        ("uniform", SHAPE, ["covers"]),
        (SPEC + "+topk:keep=0.5,cell=2,sigma=2", SHAPE, ["ptg", "nsp", "topk"]),
        (SPEC, (8, 6, 6, 12), ["multiple of 8"]),
        ("nsp:window=2,temperature=1,order=9", SHAPE, ["order 9"]),
    ],
)
def test_what_the_kernel_does_not_cover_stays_plain_and_the_note_says_why(spec: str, shape: tuple[int, ...], named: list[str]):
    plain = traced(spec, shape)
    model, note, rewrites = fuse(plain, make(spec, frames=shape[0], height=shape[1], width=shape[2]).spec)
    assert rewrites == 0
    assert not model.functions
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in plain.graph.node]
    assert naming(*named).match(note), note


@pytest.mark.parametrize(
    ("graph", "named"),
    [
        ("g (float[8, 6, 6, 16] x) => (float[8, 6, 6, 16] y) { y = Relu(x) }", ["ptg", "nsp"]),
        (
            "g (float[8, 6, 6, 16] x, float[16] z) => (float[8, 6, 6, 16] y) { compressed = Add(x, z)\n y = Relu(compressed) }",
            [2, 1],
        ),
        ("g (float[T, 6, 6, 16] x) => (float[T, 6, 6, 16] y) { compressed = Neg(x)\n y = Relu(compressed) }", ["shape", "x"]),
        (
            "g (float[8, 6, 6, 16] x) => (float[8, 6, 6, 16] y) { compressed = Neg(x)\n y = Relu(compressed) }",
            ["[8, 6, 6, 16]", "ptg:sizes=4/4/4"],
        ),
    ],
)
def test_what_is_no_such_region_is_declined_and_the_note_says_why(graph: str, named: list):
    model = model_from_text(graph)
    for node in model.graph.node:
        node.name = f"compress/nsp/{node.op_type}" if node.output[0] == "compressed" else node.op_type
    fused, note, rewrites = fuse(model)
    assert rewrites == 0 and not fused.functions
    assert naming(*named).match(note)


def test_a_spec_that_is_not_the_graphs_is_declined(plain: onnx.ModelProto):
    _, note, rewrites = fuse(plain, "nsp:window=3,temperature=1,order=2")
    assert rewrites == 0
    assert naming("nsp:window=3").match(note)


def test_nodes_that_are_also_read_elsewhere_keep_it_plain(plain: onnx.ModelProto):
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    value = next(v for v in model.graph.value_info if v.name == softmax.output[0])
    model.graph.output.append(value)
    _, note, rewrites = fuse(model)
    assert rewrites == 0
    assert naming(1, 2).match(note)  # one tensor enters, two leave


BOUNDS = "<int64[2] from = {0, 0}, int64[2] to = {6, 6}, int64[2] at = {1, 2}, int64[2] by = {2, 2}, float top = {9.0}>"


def by_hand(body: str, outputs: str, inside: tuple[str, ...]) -> onnx.ModelProto:
    """A graph whose nodes that make the tensors `inside` are those of compression."""
    model = model_from_text(f"g (float[8, 6, 6, 16] x) => ({outputs}) {BOUNDS} {{ {body} }}")
    for node in model.graph.node:
        node.name = f"{'compress/nsp' if node.output[0] in inside else 'vision'}/{node.output[0]}"
    return model


def test_a_region_from_an_input_to_an_output_becomes_a_call_with_a_body_of_the_same_opset():
    model = by_hand(
        "a = Clip(x, top, top)\n y = Slice(a, from, to, at, by)\n z = Relu(y)",
        "float[8, 3, 3, 16] y, float[8, 3, 3, 16] z",
        ("a", "y"),
    )
    model.graph.node[0].input[1] = ""  # no lowest value
    fused, note, rewrites = fuse(model)
    assert rewrites == 1 and naming(2, "gridpool::StGridPool").match(note)
    onnx.checker.check_model(fused, full_check=True)
    assert [(node.op_type, list(node.input), list(node.output)) for node in fused.graph.node] == [
        ("StGridPool", ["x"], ["y"]),
        ("Relu", ["y"], ["z"]),
    ]
    (function,) = fused.functions
    inner = {node.op_type: node for node in function.node}
    assert list(inner["Clip"].input) == ["x", "", "top"] and list(function.input) == ["x"] and list(function.output) == ["y"]
    assert [(entry.domain, entry.version) for entry in function.opset_import if not entry.domain] == [("", 20)]
    x = clip()
    np.testing.assert_array_equal(run(fused, x), np.minimum(x, 9.0)[:, ::2, ::2])


@pytest.mark.parametrize(
    ("body", "outputs", "inside", "named"),
    [
        (
            "a = Relu(x)\n b = Slice(a, from, to, at, by)\n y = Neg(b)\n z = Neg(a)",
            "float[8, 3, 3, 16] y, float[8, 6, 6, 16] z",
            ("a", "b"),
            [1, 2],
        ),
        (
            "a = Relu(x)\n y = Slice(a, from, to, at, by)",
            "float[8, 3, 3, 16] y, float[8, 6, 6, 16] a",
            ("a", "y"),
            [1, 2],
        ),
        (
            "a = Slice(x, from, to, at, by)\n b = Cast<to = 10>(a)\n y = Neg(b)",
            "float16[8, 3, 3, 16] y",
            ("a", "b"),
            ["[8, 3, 3, 16]", "[8, 6, 6, 16]"],
        ),
    ],
)
def test_a_region_that_is_read_in_the_middle_or_changes_the_type_is_declined(body, outputs, inside, named):
    fused, note, rewrites = fuse(by_hand(body, outputs, inside))
    assert rewrites == 0 and not fused.functions
    assert naming(*named).match(note)


def test_of_several_functions_only_the_body_of_the_call_is_removed():
    model = by_hand("a = Relu(x)\n y = Slice(a, from, to, at, by)", "float[8, 3, 3, 16] y", ("a", "y"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Same", "other"
    model.opset_import.add(domain="other", version=1)
    body = [onnx.helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(onnx.helper.make_function("other", "Same", ["a"], ["b"], body, [onnx.helper.make_opsetid("", 20)]))
    fused, note, rewrites = fuse(model)
    assert rewrites == 1 and naming(2, "gridpool::StGridPool").match(note)
    assert [(node.domain, node.op_type) for node in fused.functions[1].node][-2:] == [("other", "Same"), ("", "Slice")]
    assert [(function.domain, function.name) for function in fused.functions] == [("other", "Same"), ("gridpool", "StGridPool")]
    assert drop_body(fused)
    assert [(function.domain, function.name) for function in fused.functions] == [("other", "Same")]


def test_without_a_spec_or_before_the_pass_the_note_says_so():
    model = by_hand("y = Slice(x, from, to, at, by)", "float[8, 3, 3, 16] y", ("y",))
    _, (report,) = run_passes(model, ["fuse_gridpool"], graph="vision")
    assert report.rewrites == 0 and report.note == fuse_gridpool.check(graph_from_model(model), Context(model))
    assert naming("empty").match(report.note)
