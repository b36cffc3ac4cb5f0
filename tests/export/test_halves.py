"""In which order a half is traced, checked, quantised and written, and with what: the steps themselves are tested where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import halves
from export.options import ExportOptions
from export.quantize.report import LayerReport, Report
from runtime.bundle import Bundle, Manifest

REPORT = Report("int8", 0.01, 0.05, "clips", [LayerReport("a", "int8", 0.1), LayerReport("b", "fp32", 0.3)])
PARSED = onnx.ModelProto(producer_name="a model")


class StopHereError(Exception):
    """What a stand-in raises where the rest does not matter."""


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> Callable[..., None]:
    """stub(name, value): put in its place what notes the call and gives `value`, or calls it; note: which arguments to note."""

    def put(name: str, value: Any = None, note: slice = slice(None), owner: Any = halves) -> None:
        def called(*arguments: Any, **named: Any) -> Any:
            calls.append((name, *arguments[note], *([named] if named else [])))
            return value(*arguments, **named) if callable(value) else value

        monkeypatch.setattr(owner, name, called)

    return put


class Closing(SimpleNamespace):
    def close(self) -> None:
        self.closed = True


class FakeVision(torch.nn.Linear):
    def __init__(self, place: str, source: tuple[int, int] | None, select: bool):
        super().__init__(2, 2)
        self.place, self.input = place, None if source is None else SimpleNamespace(source=source)
        stages = [("ptg", SimpleNamespace(select=False)), ("evs", SimpleNamespace(select=select))]
        self.compress, self.grid = SimpleNamespace(spec="ptg+evs", stages=stages), (9, 7)


VISION_CASES = {
    "pixels": ({}, "after-projector", None, False),
    "float16": ({"precision": "fp16", "attention": "standard"}, "before-projector", None, True),
    "float16 of frames": ({"precision": "fp16"}, "after-projector", (2, 4), False),
    "int8, split": ({"precision": "int8", "split": True}, "after-projector", (2, 4), True),
}


@pytest.mark.parametrize(("options", "place", "source", "select"), VISION_CASES.values(), ids=VISION_CASES)
def test_the_steps_of_the_vision_half(tmp_path, calls, stub, monkeypatch, options, place, source, select):
    vision, half_of = FakeVision(place, source, select), SimpleNamespace(preprocessing={"size": [2, 2]})
    clip, frames = np.ones((3, 3, 2, 2), np.float32), np.full((3, 2, 4, 3), 6, np.uint8)
    outputs = {name: np.full(2, n, np.float32) for n, name in enumerate(("vision/encoder", "vision/projector", "visual_tokens"))}
    traced = SimpleNamespace(model="traced", stages={"vision/encoder": "e/output", "vision/projector": "p/output"})
    precision, split = options.get("precision", "fp32"), options.get("split", False)
    whole = "fp16" if precision == "fp16" else "fp32"
    graphs = ["vision.encoder", "vision.compressor"] if split else ["vision.loop"]
    engine = Closing()
    reference = halves.torch_reference
    stub("pixel_values", clip, owner=reference)
    stub("frames", frames, owner=reference)
    resizing = SimpleNamespace(resize=lambda frame: frame[:, :2], normalise=lambda shown: shown.astype(np.float32) / 2)
    monkeypatch.setattr(halves, "Preprocessor", lambda preprocessing: resizing)
    stub("stages", lambda vision, source, pixels: outputs.items(), owner=reference)
    stub("vision_rounding", 0.25, owner=reference)
    stub("save_vision", dict(zip(outputs, (1, 2, 3), strict=True)), owner=reference)
    stub("trace_vision", traced, slice(3, 4))
    stub("_passes", lambda half, model, *more, **facts: "with stages" if model == "traced" else PARSED, slice(1, None))
    stub("_compare_stages", lambda *arguments: f"tokens {arguments[6]}", slice(1, None))
    stub("_quantize_vision", "quantized", slice(1, None))
    stub("drop_outputs", lambda model, names: f"{model} without {len(list(names))}", slice(0))
    stub("_write_frame_by_frame", graphs, slice(1, None))
    stub("_check_tensorrt", None, slice(1, 3))
    monkeypatch.setattr(halves, "OnnxEngine", SimpleNamespace(load=lambda path: engine))
    monkeypatch.setattr(halves, "vision_engine", lambda *engines: Closing(parts=engines))
    stub("verify_frame_by_frame", "frame by frame")
    stub("compare_vision_float16", "rows")
    stub("verify_float16", ["in float16"])

    chosen = ExportOptions(**options)
    half = halves.export_vision(tmp_path, vision, half_of, 3, chosen)

    given = clip if source is None else frames
    pixels = clip if source is None else np.full((3, 2, 2, 3), 3, np.float32)
    made = [("pixel_values", half_of, 3)] if source is None else [("frames", half_of, 3, (2, 4))]
    checked = ["vision", "vision.encoder", "vision.compressor"] if split else ["vision"]
    final = "quantized" if precision == "int8" else "with stages"
    compared = ("_compare_stages", "with stages", tmp_path, vision, outputs, given, whole, 0.25)
    again = [
        ("_quantize_vision", "with stages", tmp_path, vision, half_of, chosen),
        ("_compare_stages", "quantized", tmp_path, vision, outputs, given, "int8", 0.25),
    ]
    features = outputs["vision/projector" if place == "after-projector" else "vision/encoder"]
    rows = [
        ("compare_vision_float16", tmp_path, given, features, outputs["visual_tokens"], select),
        ("verify_float16", "rows", "--precision fp32 (with --llm-precision fp16, if only its vision half does)"),
    ]
    together = next(call for call in calls if call[0] == "verify_frame_by_frame")[1]
    assert together.parts == ((engine, engine) if split else (engine,))
    assert together.closed
    expected = [
        *made,
        ("trace_vision", 24 if chosen.attention == "standard" else 20),
        ("_passes", "traced", tmp_path, "vision", None, {"precision": whole}),
        ("stages", vision, half_of, pixels),
        ("vision_rounding", half_of, pixels),
        compared,
        *(again if precision == "int8" else []),
        ("drop_outputs",),
        ("_write_frame_by_frame", f"{final} without 0", tmp_path, vision, traced.stages, chosen),
        ("drop_outputs",),
        ("_passes", f"{final} without 2", tmp_path, "vision", ["fuse_gridpool"], {"compression": "ptg+evs"}),
        *(("_check_tensorrt", tmp_path / f"{graph}.onnx", graph) for graph in checked),
        ("verify_frame_by_frame", together, vision, f"tokens {precision}", given, precision, 0.25),
        *(rows if whole == "fp16" else []),
        ("save_vision", tmp_path / "reference", {"pixel_values" if source is None else "frames": given}, outputs),
    ]
    np.testing.assert_equal(calls, expected)
    assert half.verified == ["frame by frame", *(["in float16"] if whole == "fp16" else [])]
    tensors = zip(outputs, ("e/output", "p/output", "visual_tokens"), (1, 2, 3), strict=True)
    assert half.stages == [
        {"name": name, "graph": "vision", "tensor": tensor, "every": every, "rounding": 0.25} for name, tensor, every in tensors
    ]
    assert half.visual_tokens is outputs["visual_tokens"]
    assert onnx.load(str(tmp_path / "vision.onnx")).producer_name == "a model"
    assert vision.weight.dtype == torch.float32, "a copy is traced in float16"


@pytest.mark.parametrize(("precision", "kind", "expected"), [("fp16", np.float32, torch.float16), ("fp16", np.uint8, torch.uint8), ("fp32", np.float32, torch.float32)])  # fmt: skip
def test_a_clip_is_traced_in_the_graphs_type_and_frames_are_bytes_in_any(precision, kind, expected):
    tensor = halves._tensor(np.full((1, 2), 3, kind), precision)
    assert tensor.dtype == expected and tensor.tolist() == [[3, 3]]


def test_the_module_is_traced_in_float16_where_the_weights_will_be(tmp_path, monkeypatch):
    seen = []

    def trace(module, tensor, path, opset):
        seen.append((module.weight.dtype, tensor.dtype, path))
        raise StopHereError

    monkeypatch.setattr(halves, "trace_vision", trace)
    monkeypatch.setattr(halves.torch_reference, "pixel_values", lambda source, frames: np.ones((1, 3, 2, 2), np.float32))
    for precision in ("fp16", "fp32", "int8"):
        with pytest.raises(StopHereError):
            halves.export_vision(tmp_path, FakeVision("after-projector", None, False), None, 1, ExportOptions(precision=precision))
    path = tmp_path / "vision.onnx"
    assert seen == [(kind, kind, path) for kind in (torch.float16, torch.float32, torch.float32)]


def test_stages_are_compared_on_an_engine_that_is_closed_afterwards(tmp_path, monkeypatch, calls, stub):
    engine, half = Closing(), halves.Half(verified=["of before"])
    monkeypatch.setattr(halves, "OnnxEngine", SimpleNamespace(load=lambda model, data: calls.append((model, data)) or engine))
    stub("verify_vision", (["rows"], "tokens"))
    assert halves._compare_stages(half, PARSED, tmp_path, "vision", "outputs", "given", "fp16", 0.5) == "tokens"
    model = PARSED.SerializeToString()
    assert calls == [(model, tmp_path), ("verify_vision", engine, "vision", "outputs", "given", "fp16", 0.5)]
    assert half.verified == ["rows"] and engine.closed


@pytest.mark.parametrize(
    ("source", "calibrate", "taken", "directory"),
    [(None, None, {"size": [2, 2]}, None), ((40, 60), "videos", {"size": [2, 2], "frames": [40, 60]}, Path("videos"))],
)
def test_the_vision_half_is_quantised_on_clips_as_the_graph_takes_them(tmp_path, calls, stub, source, calibrate, taken, directory):
    vision, half = FakeVision("after-projector", source, False), halves.Half()
    model = onnx.ModelProto()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("visual_tokens", "e/output", "p/output"))
    stub("with_weights", "whole")
    stub("_passes", "joined", slice(1, None))
    stub("save_weights", lambda model, path: f"{model} saved")
    stub("Clips", "clips")
    stub("quantize_vision", ("quantized", REPORT))
    stub("infer_shapes", lambda model: f"{model}, shapes too", owner=onnx.shape_inference)
    options = ExportOptions(precision="int8", calibrate=calibrate, error_budget=0.3)
    made = halves._quantize_vision(half, model, tmp_path, vision, SimpleNamespace(preprocessing={"size": [2, 2]}), options)
    path = tmp_path / "vision.onnx"
    assert made == "quantized saved, shapes too" and half.quantized == {"vision": REPORT}
    assert calls == [
        ("with_weights", model, tmp_path),
        ("_passes", "whole", tmp_path, "vision", ["join_matmuls"]),
        ("save_weights", "joined", path),
        ("Clips", taken, directory),
        ("quantize_vision", "joined saved", tmp_path, ["e/output", "p/output"], (9, 7), "clips", 0.3),
        ("save_weights", "quantized", path),
        ("infer_shapes", "quantized saved"),
    ]
    (row,) = half.report
    assert (row["graph"], row["pass"], row["rewrites"]) == ("vision", "quantize int8", 1) and "1 of 2 layers" in row["note"]


@pytest.mark.parametrize(
    ("precision", "whole", "rows", "finished"),
    [("fp32", "fp32", np.float32, True), ("fp16", "fp16", np.float16, True), ("int8", "fp32", np.float32, False), ("int4:64", "fp32", np.float32, False)],
)  # fmt: skip
def test_a_decoder_that_is_still_to_be_quantized_is_neither_checked_nor_written_for_a_batch(
    tmp_path, monkeypatch, precision, whole, rows, finished
):
    table = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    embeddings = SimpleNamespace(weight=torch.nn.Parameter(torch.from_numpy(table)))
    source = SimpleNamespace(
        causal_lm=SimpleNamespace(get_input_embeddings=lambda: embeddings), prompt={"chat_template": "{{ 'é' }}"}
    )
    (tmp_path / "tokenizer.json").write_text("tokens")
    (tmp_path / "b" / "llm").mkdir(parents=True)
    calls, traced = [], []

    class Decoder(torch.nn.Linear):
        def facts(self):
            return {"layers": 2}

    monkeypatch.setattr(halves, "Decoder", lambda llm, context, attention: Decoder(2, 2))
    monkeypatch.setattr(
        halves,
        "trace_decoder",
        lambda module, *more: traced.append(module.weight.dtype) or SimpleNamespace(model=onnx.ModelProto()),
    )
    monkeypatch.setattr(halves, "_passes", lambda half, model, *more, **facts: calls.append(("passes", facts)) or model)
    monkeypatch.setattr(halves, "_write_batch", lambda half, model, directory: calls.append(("batch", directory)))
    monkeypatch.setattr(halves, "_check_tensorrt", lambda half, path, graph, options: calls.append(("check", path, graph)))
    options = ExportOptions(llm_precision=precision)
    half = halves.export_llm(tmp_path / "b", source, SimpleNamespace(path=tmp_path), options, 64)
    decoder = tmp_path / "b" / "llm" / "decoder.onnx"
    rest = [("batch", tmp_path / "b"), ("check", decoder, "llm/decoder")] if finished else []
    assert calls == [("passes", {"precision": whole}), *rest] and decoder.exists()
    assert half.facts == {"layers": 2, "attention": "portable", "precision": whole}
    assert traced == [torch.float16 if whole == "fp16" else torch.float32]
    written = np.load(tmp_path / "b" / "llm" / "embed_tokens.npy")
    assert written.dtype == rows
    np.testing.assert_array_equal(written, table.astype(rows))
    assert (tmp_path / "b" / "llm" / "tokenizer.json").read_text() == "tokens"
    assert (tmp_path / "b" / "llm" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ 'é' }}"


def manifest(**values: Any) -> Manifest:
    given = {
        "family": "f", "checkpoint": {}, "compression": {}, "frames": 2, "grid": [1, 1], "tokens_per_clip": 20, "hidden_size": 4,
        "preprocessing": {"size": [2, 2]}, "prompt": {}, "llm": {"layers": 1}, "precision": "fp32", "opset": 20,
        "limits": {"max_context": 60}, "stages": [], "report": [], "versions": {}, "files": {"a": {"size": 1}},
    }  # fmt: skip
    return Manifest(**given | values)


EMBEDDINGS = torch.nn.Parameter(torch.arange(12, dtype=torch.float32).reshape(4, 3) / 7)
LLM = SimpleNamespace(causal_lm=SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=EMBEDDINGS)))


@pytest.mark.parametrize(
    ("context", "tokens", "given", "asked", "taken"),
    [
        (60, 20, None, 39, 39),  # 60 without 3 and 2 of the prompt and 16 of the answer
        (60, 50, None, 50, 50),
        (1000, 20, None, 64, 64),
        (1000, 900, None, 64, 64),
        (60, 20, 33, None, 33),
        (4096, 20, 1025, None, 1024),
    ],
)
@pytest.mark.parametrize(("batch", "precision"), [(True, "fp32"), (False, "fp16"), (False, "fp32")])
def test_the_llm_is_compared_on_as_many_tokens_as_fit(
    tmp_path, calls, stub, monkeypatch, context, tokens, given, asked, taken, batch, precision
):
    bundle = Bundle(
        tmp_path, manifest(limits={"max_context": context}, tokens_per_clip=tokens, llm={"layers": 1, "precision": precision})
    )
    (tmp_path / "llm").mkdir()
    if batch:
        (tmp_path / "llm" / "decoder.batch.onnx").touch()
    ids = SimpleNamespace(before=[1, 2, 3], after=[4, 5])
    asking = SimpleNamespace(ids=lambda question: ids if question == "What happens in the video?" else None)
    monkeypatch.setattr(halves, "Prompt", lambda of: asking)
    half, expected = halves.Half(), SimpleNamespace(rounding=0.125)
    stub("_rows_like", lambda source, count: list(range(count)))
    stub("llm", expected, owner=halves.torch_reference)
    stub("save_llm", owner=halves.torch_reference)
    stub("verify_llm", ["as torch"])
    stub("verify_batch", "as alone")
    stub("compare_llm_float16", "rows")
    stub("verify_float16", ["in float16"])
    visual = None if given is None else list(range(given))
    assert halves.check_llm(half, bundle, LLM, visual) is expected
    assert calls == [
        *([("_rows_like", LLM, asked)] if given is None else []),
        ("llm", LLM, ids, list(range(taken))),
        ("verify_llm", bundle, expected),
        *([("verify_batch", bundle, 0.125)] if batch else []),
        *([("compare_llm_float16", bundle, expected), ("verify_float16", "rows", "--llm-precision fp32")] if precision == "fp16" else []),
        ("save_llm", tmp_path / "reference", expected),
    ]  # fmt: skip
    assert half.verified == ["as torch", *(["as alone"] if batch else []), *(["in float16"] if precision == "fp16" else [])]


@pytest.mark.parametrize(
    ("options", "precision", "block", "facts"),
    [
        ({"llm_precision": "int4:64"}, "int4", 64, {"layers": 1, "precision": "int4", "block": 64}),
        ({"llm_precision": "int8", "only": "llm", "calibrate": "videos"}, "int8", 0, {"layers": 1, "precision": "int8"}),
        ({"precision": "int8", "only": "vision", "error_budget": 0.3}, "int8", 0, {"layers": 1, "precision": "int8"}),
    ],
)
def test_the_steps_of_a_quantised_llm_half(tmp_path, calls, stub, options, precision, block, facts):
    (tmp_path / "llm").mkdir()
    path = tmp_path / "llm" / "decoder.onnx"
    onnx.save(PARSED, str(path))
    bundle, half, chosen = (
        Bundle(tmp_path, manifest()),
        halves.Half(facts={"layers": 1, "precision": "fp32"}),
        ExportOptions(**options),
    )
    expected = SimpleNamespace(rounding=0.125)
    stub("Clips", SimpleNamespace(source="the clips"))
    stub("_rows_like", "rows")
    stub("calibration_prompts", iter(["one", "two"]), slice(0, 3, 2))
    stub("with_weights", lambda model, directory: "whole")
    stub("_passes", "joined", slice(1, None))
    stub("save_weights", lambda model, path: f"{model} saved")
    stub("quantize_llm", ("quantized", REPORT))
    stub("_write_batch", None, slice(1, None))
    stub("_check_tensorrt", None, slice(1, None))
    stub("verify_llm", ["as torch"])
    stub("verify_batch", "as alone")
    halves.quantize_llm_half(half, bundle, LLM, expected, chosen)
    files = {"a": {"size": 1}, "llm/embed_scales.npy": {}, "llm/decoder.batch.onnx": {}}
    quantized = Bundle(tmp_path, manifest(llm=facts, files=files))
    alone = chosen.only == "llm"
    assert calls == [
        ("Clips", {"size": [2, 2]}, Path("videos") if chosen.calibrate else None),
        *([("_rows_like", LLM, 20)] if alone else []),
        ("calibration_prompts", bundle, "rows" if alone else None),
        ("with_weights", PARSED, path.parent),
        ("_passes", "whole", path.parent, "llm/decoder", ["join_matmuls"]),
        ("save_weights", "joined", path),
        ("quantize_llm", path, precision, block, ["one", "two"], "the clips", chosen.error_budget),
        ("save_weights", "quantized", path),
        ("_write_batch", "quantized saved", tmp_path),
        ("_check_tensorrt", path, "llm/decoder", chosen),
        ("verify_llm", quantized, expected),
        ("verify_batch", quantized, 0.125),
    ]
    assert half.facts == facts and half.quantized == {"llm/decoder": REPORT} and half.verified == ["as torch", "as alone"]
    (row,) = half.report
    assert (row["graph"], row["pass"], row["rewrites"]) == ("llm/decoder", f"quantize {chosen.of_llm}", 1)
    rows, scales = (np.load(tmp_path / "llm" / f"embed_{kind}.npy") for kind in ("tokens", "scales"))
    np.testing.assert_allclose(rows * scales[:, None], EMBEDDINGS.detach().numpy(), atol=11 / 7 / 127)
    assert rows.dtype == np.int8


def test_the_decoder_for_a_batch_lies_beside_the_one_for_a_conversation(tmp_path, calls, stub):
    (tmp_path / "llm").mkdir()
    stub("_passes", PARSED, slice(1, None))
    halves._write_batch(halves.Half(), "decoder", tmp_path)
    assert calls == [("_passes", "decoder", tmp_path / "llm", "llm/decoder.batch", ["batch"])]
    assert onnx.load(str(tmp_path / "llm" / "decoder.batch.onnx")).producer_name == "a model"


def test_random_rows_have_the_width_and_the_scale_of_the_embeddings():
    wide = SimpleNamespace(weight=torch.linspace(-3, 5, 700).reshape(7, 100))
    source = SimpleNamespace(causal_lm=SimpleNamespace(get_input_embeddings=lambda: wide))
    rows = halves._rows_like(source, 50)
    assert rows.shape == (50, 100) and rows.dtype == np.float32
    assert rows.std() == pytest.approx(8 / 12**0.5, rel=0.03)  # of what is even from -3 to 5
    assert rows.mean() == pytest.approx(0, abs=0.1)
    np.testing.assert_array_equal(rows, halves._rows_like(source, 50))


@pytest.mark.parametrize("split", [False, True])
def test_what_runs_frame_by_frame_is_a_loop_or_two_graphs(tmp_path, calls, stub, split):
    two = [
        onnx.helper.make_model(onnx.helper.make_graph([onnx.NodeProto()] * count, name, [], []))
        for count, name in ((3, "e"), (2, "c"))
    ]
    stub("run_passes", ("looped", []))
    stub("_passes", lambda half, model, *more, **facts: "looped" if model == "model" else model, slice(1, None))
    stub("drop_outputs", lambda model, names: f"{model} without {', '.join(names)}" if split else PARSED, slice(1))
    stub("split", two)
    half = halves.Half()
    names = halves._write_frame_by_frame(half, "model", tmp_path, FakeVision("", None, False), {"a": "a/output", "b": "b/output"}, ExportOptions(split=split))  # fmt: skip
    assert names == (["vision.encoder", "vision.compressor"] if split else ["vision.loop"])
    assert [path.name for path in sorted(tmp_path.iterdir(), reverse=True)] == [f"{name}.onnx" for name in names]
    if not split:
        assert calls == [("_passes", "model", tmp_path, "vision.loop", ["frame_loop"]), ("drop_outputs", "looped")]
        assert half.report == []
        return
    assert calls == [
        ("run_passes", "model", ["frame_loop"], {"graph": "vision.loop", "directory": tmp_path, "required": ["frame_loop"]}),
        ("drop_outputs", "looped"),
        ("split", "looped without a/output, b/output", (9, 7)),
        ("_passes", two[1], tmp_path, "vision.compressor", ["fuse_gridpool"], {"compression": "ptg+evs"}),
    ]
    assert half.report == [{"graph": "vision.encoder", "pass": "split", "rewrites": 3, "note": "2 nodes left for the compressor"}]
    assert [onnx.load(str(tmp_path / f"{name}.onnx")).graph.name for name in names] == ["e", "c"]


def test_what_passes_did_is_added_to_the_report(tmp_path, calls, stub):
    half = halves.Half(report=[{"pass": "before"}])
    stub("run_passes", ("after", [halves.PassReport("vision", "fold", 3, "note")]))
    assert halves._passes(half, "model", tmp_path, "vision", ["fold"], precision="fp16") == "after"
    assert calls == [("run_passes", "model", ["fold"], {"graph": "vision", "directory": tmp_path, "precision": "fp16"})]
    assert half.report == [{"pass": "before"}, {"graph": "vision", "pass": "fold", "rewrites": 3, "note": "note"}]
