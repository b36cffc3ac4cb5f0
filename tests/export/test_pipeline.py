"""The export end to end: its options, what it writes, and that it refuses a graph that does not compute what torch computes."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import weakref

import numpy as np
import onnx
import pytest
from refusal import naming

from export import component, llm, vision
from export.__main__ import main
from export.families import llava_ov
from export.options import ExportOptions
from export.pipeline import export_bundle
from export.verify import verify_float16
from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle
from runtime.core.errors import EngineError, ExportError
from runtime.engine import EngineOptions, open_engine
from runtime.engine.onnx import OnnxEngine
from runtime.tools import reference
from runtime.tools.float16_rows import compare_llm_float16
from runtime.tools.parity import parity


def _export(tmp_path, **options) -> Bundle:
    export_bundle(ExportOptions(out=str(tmp_path / "b"), **options))
    return Bundle.open(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"precision": "fp16", "place": "before-projector", "compress": "st-gridpool-8x", "tensorrt": "10.3"}, 8 * 16 + 1),
        ({"attention": "standard", "frames": 8}, 16 * 8 + 1),
        ({"compress": "vidcom2", "frames": 5, "max_context": 200}, 20 * 5 + 1),
    ],
    ids=["fp16 before-projector 8x", "standard attention", "selection, odd T"],
)
def test_every_choice_gives_a_bundle_that_agrees_with_torch(tmp_path, options, tokens):
    bundle = _export(tmp_path, **options)
    manifest = bundle.manifest
    assert manifest.tokens_per_clip == tokens
    assert manifest.precision == options.get("precision", "fp32")
    assert manifest.limits.max_context == options.get("max_context", manifest.limits.max_context) > tokens
    report = parity(bundle, ["onnx"])
    assert report.ok, report.rows
    assert {row.stage for row in report.rows} >= {"vision/encoder", "vision/projector", "visual_tokens", "llm/greedy_ids"}


@pytest.fixture(scope="module")
def flash(tmp_path_factory):
    out = tmp_path_factory.mktemp("flash") / "b"
    return export_bundle(ExportOptions(out=str(out), precision="fp16", attention="flash", frames=2))


def test_flash_attention_is_checked_in_float16_and_its_decoder_refused_without_cuda(flash):
    bundle, result = Bundle.open(flash.bundle.path), flash
    assert bundle.llm.attention == "flash" and bundle.manifest.opset == 24
    checked = [row["stage"] for row in result.verified if row["stage"].startswith("llm/")]
    assert checked == ["llm/prefill (float16)", "llm/greedy_ids (float16)", "llm/batch (float16)"]
    for graph in (VISION, VISION_LOOP, DECODER):
        assert b"Attention" in (bundle.path / f"{graph}.onnx").read_bytes()
    with pytest.raises(EngineError, match=naming("flash", "--device cuda", "--attention portable")):
        open_engine(bundle, DECODER, "onnx", EngineOptions("cpu"))


def _not_causal(node: onnx.NodeProto) -> None:
    next(one for one in node.attribute if one.name == "is_causal").i = 0


@pytest.mark.parametrize(
    ("wrong", "change", "stages"),
    [
        ("not causal", _not_causal, {"llm/prefill (float16)", "llm/batch (float16)"}),
        ("a row too many", lambda node: node.input.__setitem__(6, "one more"), {"llm/prefill (float16)", "llm/batch (float16)"}),
        ("a row too few", lambda node: node.input.__setitem__(6, "one less"), {"llm/prefill (float16)", "llm/batch (float16)"}),
        ("the rows of the longest", lambda node: node.input.__setitem__(6, "of the mask"), {"llm/batch (float16)"}),
    ],
)
def test_a_flash_decoder_that_sees_other_rows_fails_the_check_of_the_export(flash, tmp_path, wrong, change, stages):
    bundle = flash.bundle
    broken = Bundle(shutil.copytree(bundle.path, tmp_path / "b"), bundle.manifest)
    for graph in (DECODER, DECODER_BATCH):
        model = onnx.load(broken.model(graph))
        nodes = [node for node in model.graph.node if node.op_type == "Attention"]
        filled = nodes[0].input[6]
        maker = next(index for index, node in enumerate(model.graph.node) if filled in node.output)
        of_mask = next(node for node in model.graph.node if node.op_type == "ReduceSum").output[0]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([1]), "a row"))
        for operator, inputs, output in (
            ("Add", [filled, "a row"], "one more"),
            ("Sub", [filled, "a row"], "one less"),
            ("Identity", [of_mask], "of the mask"),
        ):
            model.graph.node.insert(maker + 1, onnx.helper.make_node(operator, inputs, [output]))
        for node in nodes:
            change(node)
        onnx.save(model, broken.model(graph))
    rows = compare_llm_float16(broken, reference.llm(bundle))
    assert {row.stage for row in rows if not row} >= stages, (wrong, rows)
    with pytest.raises(ExportError, match=naming("float16 arithmetic")):
        verify_float16(rows, "--llm-precision fp32")


def test_no_file_carries_paths_of_the_build_host(bundle):
    for graph in (VISION, VISION_LOOP, DECODER):
        content = (bundle.path / f"{graph}.onnx").read_bytes()
        assert b".py" not in content and b"site-packages" not in content


def test_the_manifest_says_what_a_runtime_must_know(bundle):
    values = json.loads((bundle.path / "manifest.json").read_text())
    assert values["schema_version"] == 1 and values["family"] == "llava-ov"
    assert values["compression"]["spec"] == "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2"
    assert (values["frames"], values["grid"], values["tokens_per_clip"], values["hidden_size"]) == (16, [9, 9], 257, 128)
    assert values["prompt"]["video_token"] == "<video>" and values["prompt"]["eos_token_ids"] == [2]
    assert len(values["checkpoint"]["sha256"]) == 64 and "torch" in values["versions"]
    on_disk = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert on_disk == set(values["files"])


@pytest.mark.parametrize(("only", "present", "absent"), [("vision", VISION, DECODER), ("llm", DECODER, VISION)])
def test_one_component_can_be_exported_alone(tmp_path, only, present, absent):
    bundle = _export(tmp_path, only=only)
    assert bundle.model(present).exists()
    assert not (bundle.path / f"{absent}.onnx").exists()
    assert bundle.has_llm == (only == "llm")


def test_the_llm_is_read_when_the_encoder_is_gone(tmp_path, monkeypatch):
    made = []
    load_vision = llava_ov.load_vision

    def load(*given):
        source = load_vision(*given)
        made.extend([weakref.ref(source.encoder), weakref.ref(source.projector)])
        return source

    def load_llm(checkpoint):
        gc.collect()  # torch.export leaves cycles
        assert len(made) == 2 and not any(one() for one in made)
        raise ExportError("nothing is exported in this test")

    monkeypatch.setattr(llava_ov, "load_vision", load)
    monkeypatch.setattr(llava_ov, "load_llm", load_llm)
    with pytest.raises(ExportError, match="nothing is exported"):
        export_bundle(ExportOptions(out=str(tmp_path / "b"), frames=2))


@pytest.mark.parametrize(("errors", "said"), [(None, "not installed here"), ([], "parsed")])
def test_what_the_parsers_say_of_a_graph_is_told(tmp_path, monkeypatch, errors, said):
    graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = Swish(x) }")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)]), str(tmp_path / "vision.onnx"))
    monkeypatch.setattr(component, "parse_with_rtx", lambda path: errors)
    assert component.check_tensorrt(tmp_path, "vision", None) == {"vision: parser of TensorRT-RTX": said}
    assert component.check_tensorrt(tmp_path, "vision", "11.1") == {
        "vision: operators of TensorRT 11.1": "all nodes supported",
        "vision: parser of TensorRT-RTX": said,
    }
    with pytest.raises(ExportError, match=naming("TensorRT 10.15", "node y (Swish)")):
        component.check_tensorrt(tmp_path, "vision", "10.15")
    monkeypatch.setattr(component, "parse_with_rtx", lambda path: ["the first", "the second"])
    with pytest.raises(ExportError, match=naming("vision.onnx", "the first")):
        component.check_tensorrt(tmp_path, "vision", None)


@pytest.mark.slow
def test_an_llm_alone_is_compared_within_a_context_that_has_room_for_little_more_than_the_clip(tmp_path):
    result = export_bundle(ExportOptions(out=str(tmp_path / "b"), only="llm", frames=2, max_context=60))
    assert result.bundle.manifest.limits.max_context == 60 and result.bundle.manifest.tokens_per_clip == 33


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["loop", "split"])
def test_large_weights_are_in_one_file_that_all_graphs_of_a_component_share(tmp_path, monkeypatch, bundle, split):
    monkeypatch.setattr("export.trace.INLINE_BYTES", 1000)
    monkeypatch.setattr("export.surgeon.graph.SMALL", 4096)  # else every weight of the tiny model is small enough to go inline
    large = _export(tmp_path, split=split)
    graphs = (VISION, VISION_ENCODER, VISION_COMPRESSOR) if split else (VISION, VISION_LOOP)
    assert (large.path / "vision.onnx.data").stat().st_size > 1e6
    for shared, file in ((graphs, "vision.onnx.data"), ((DECODER, DECODER_BATCH), "decoder.onnx.data")):
        assert all(large.model(graph).stat().st_size < 3e5 for graph in shared)
        models = [onnx.load(str(large.model(graph)), load_external_data=False) for graph in shared]
        external = [entry for model in models for tensor in model.graph.initializer for entry in tensor.external_data]
        assert {entry.value for entry in external if entry.key == "location"} == {file}
    pixels = np.random.default_rng(0).uniform(-1, 1, (16, 3, 126, 126)).astype(np.float32)
    expected = OnnxEngine.load(bundle.model(VISION)).run({"pixel_values": pixels})["visual_tokens"]
    for engine in (OnnxEngine.load(large.model(VISION)), open_engine(large, VISION)):
        np.testing.assert_allclose(engine.run({"pixel_values": pixels})["visual_tokens"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "factor", "stage"),
    [
        ("encoder.layers.1.mlp.fc1.weight", 1.02, "vision/encoder"),
        ("projector.linear_2.weight", 1.02, "vision/projector"),
        ("newline", 1.5, "visual_tokens"),
    ],
)
def test_a_vision_graph_that_differs_is_refused_with_the_first_stage_that_does(tmp_path, monkeypatch, part, factor, stage):
    trace = vision.trace_vision

    def traced_wrong(module, *args):
        wrong = copy.deepcopy(module)
        wrong.get_parameter(part).data.mul_(factor)
        return trace(wrong, *args)

    monkeypatch.setattr(vision, "trace_vision", traced_wrong)
    with pytest.raises(ExportError, match=f"^{stage} differs"):
        _export(tmp_path, only="vision", frames=2)
    assert not list(tmp_path.iterdir())


def test_a_decoder_that_differs_is_refused(tmp_path, monkeypatch):
    trace = llm.trace_decoder

    def traced_wrong(decoder, *args):
        wrong = copy.deepcopy(decoder)
        wrong.layers[2].self_attn.scale *= 1.05
        return trace(wrong, *args)

    monkeypatch.setattr(llm, "trace_decoder", traced_wrong)
    with pytest.raises(ExportError, match=r"^llm/prefill differs"):
        _export(tmp_path, only="llm")
    assert not list(tmp_path.iterdir())


def test_a_graph_for_a_batch_that_differs_is_refused(tmp_path, monkeypatch):
    run_passes = llm.run_passes

    def run_wrong(model, *passes, graph, **more):
        model, reports = run_passes(model, *passes, graph=graph, **more)
        if graph == DECODER_BATCH:
            head = next(node for node in model.graph.node if "logits" in node.output)
            weight = next(tensor for tensor in model.graph.initializer if tensor.name in head.input)
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return model, reports

    monkeypatch.setattr(llm, "run_passes", run_wrong)
    with pytest.raises(ExportError, match=r"^llm/batch differs"):
        _export(tmp_path, only="llm")
    assert not list(tmp_path.iterdir())


def test_the_standard_variant_is_refused_for_a_jetsons_parser_with_its_opset(tmp_path):
    with pytest.raises(ExportError, match=naming("--attention standard", "opset 24", "TensorRT 10.3", 20, "--attention portable")):
        _export(tmp_path, only="llm", attention="standard", tensorrt="10.3")
    assert not list(tmp_path.iterdir())


def test_list_names_families_presets_and_stages_with_their_options(capsys):
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    for word in ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "st-gridpool-8x", "vidcom2", "temperature=1", "strides=2/4/8"):
        assert word in text
    families, known, stages = [line for line in text.splitlines() if not line.startswith(" ")]
    assert (families, known) == ("families", "presets") and stages.startswith("stages (")
    assert main(["--list", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["presets"]["uniform"] == "avgpool:window=2" and table["stages"]["nsp"]["window"] == "2"


def test_json_result_is_alone_on_stdout(tmp_path, capfd):
    assert main(["--only", "vision", "--frames", "2", "--out", str(tmp_path / "b"), "--json"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert result["patch_tokens"] == 162 and result["tokens_per_clip"] == 33
    assert all(row["ok"] for row in result["verified"]) and {"pass", "rewrites", "graph", "note"} <= result["passes"][0].keys()
    assert "tracing the vision encoder" in captured.err
