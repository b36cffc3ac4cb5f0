"""In which order the vision encoder is traced, checked, quantised and written, and with what: the steps are tested where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import vision
from export.options import ExportOptions
from export.quantize.report import LayerReport, Report
from export.reference import VisionReference
from runtime.bundle.manifest import PassReport, StageTensor

REPORT = Report("int8", 0.01, 0.05, "clips", [LayerReport("a", "int8", 0.1), LayerReport("b", "fp32", 0.3)])
GRAPH = onnx.ModelProto(producer_name="a model")
INPUTS, PIXELS = np.ones((3, 3, 2, 2), np.float32), np.full((3, 3, 2, 2), 2, np.float32)
OUTPUTS = {name: np.full(2, n, np.float32) for n, name in enumerate(("vision/encoder", "vision/projector", "visual_tokens"))}
EXPECTED = VisionReference(INPUTS, OUTPUTS, 0.25)


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> Callable[..., None]:
    """stub(name, value): put in its place what notes the call and gives `value`, or calls it; note: which arguments to note."""

    def put(name: str, value: Any = None, note: slice = slice(None), owner: Any = vision) -> None:
        def called(*arguments: Any, **named: Any) -> Any:
            calls.append((name, *arguments[note], *([named] if named else [])))
            return value(*arguments, **named) if callable(value) else value

        monkeypatch.setattr(owner, name, called)

    return put


class Closing(SimpleNamespace):
    closed = False

    def close(self) -> None:
        self.closed = True


class FakeVision(torch.nn.Linear):
    """A module of two weights; `selected` as in export.stages."""

    def __init__(self, place: str = "after-projector", selected: frozenset[str] = frozenset()):
        super().__init__(2, 2)
        self.place, self.selected, self.grid, self.input_name = place, selected, (9, 7), "pixel_values"
        self.features = "vision/projector" if place == "after-projector" else "vision/encoder"

    def stage_names(self) -> list[str]:
        return ["vision/encoder", "vision/projector"]


def plan(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        options=ExportOptions(**options),
        family=SimpleNamespace(load_vision=lambda checkpoint, attention: f"{attention} weights of {checkpoint}"),
        checkpoint="a checkpoint",
        compress=SimpleNamespace(spec="ptg+evs"),
        vision=SimpleNamespace(grid=(9, 7)),
        preprocessing="how",
        frames=3,
        input=None,
    )


CASES = {
    "float32": ({}, frozenset()),
    "float16": ({"precision": "fp16", "attention": "standard", "place": "before-projector"}, {"compress/evs"}),
    "int8, split": ({"precision": "int8", "split": True, "tensorrt": "10.3"}, frozenset()),
}


@pytest.mark.parametrize(("options", "selected"), CASES.values(), ids=CASES)
def test_the_steps_of_an_export(tmp_path, calls, stub, monkeypatch, options, selected):
    chosen = plan(**options)
    module = FakeVision(chosen.options.place, selected)
    precision, split = options.get("precision", "fp32"), options.get("split", False)
    dtype = "fp16" if precision == "fp16" else "fp32"
    graphs = ["vision.encoder", "vision.compressor"] if split else ["vision.loop"]
    engines: list[Any] = []
    running = Closing()
    stub("Vision", SimpleNamespace(eval=lambda: module))
    stub("trace_vision", "traced", slice(2, 4))
    stub("run_passes", lambda model, *names, **more: ("with stages", ["passes"]))
    stub("_compare", lambda model, *more: ([f"rows {more[-1]}"], f"tokens {more[-1]}"))
    stub("_quantize", ("quantized", ["quantize"], REPORT))
    stub("drop_outputs", lambda model, names: f"{model} without {len(list(names))}", slice(0))
    stub("_write_loop", (graphs, ["loop"]))
    stub("_write_split", (graphs, ["split"]))
    stub("_fuse", (GRAPH, ["fuse"]))
    stub("check_tensorrt", lambda directory, graph, release: {graph: "parsed"})
    monkeypatch.setattr(vision, "OnnxEngine", SimpleNamespace(load=lambda path: path))
    monkeypatch.setattr(vision, "VisionEngine", lambda *graphs: engines.extend(graphs) or running)
    stub("verify_frame_by_frame", "frame by frame")
    stub("compare_vision_float16", "float16 rows")
    stub("verify_float16", ["in float16"], slice(1))
    stub("make_clip", (INPUTS, PIXELS), owner=vision.reference)
    stub("stages", OUTPUTS, owner=vision.reference)
    stub("vision_rounding", 0.25, owner=vision.reference)
    stub("save_vision", dict(zip(OUTPUTS, (1, 2, 3), strict=True)), owner=vision.reference)

    made = vision.export_vision(tmp_path, chosen)

    source, final = f"{chosen.options.attention} weights of a checkpoint", "quantized" if precision == "int8" else "with stages"
    write = "_write_split" if split else "_write_loop"
    again = [
        ("_quantize", "with stages", tmp_path, module, chosen),
        ("_compare", "quantized", tmp_path, module, EXPECTED, "int8"),
    ]
    features = OUTPUTS["vision/projector" if module.place == "after-projector" else "vision/encoder"]
    half_precision = [
        ("compare_vision_float16", tmp_path, INPUTS, features, OUTPUTS["visual_tokens"], bool(selected)),
        ("verify_float16", "float16 rows"),
    ]
    expected = [
        ("Vision", source, chosen.compress, module.place, None),
        ("make_clip", source, 3, None),
        ("trace_vision", tmp_path / "vision.onnx", 24 if options.get("attention") else 20),
        ("run_passes", "traced", {"graph": "vision", "directory": tmp_path, "precision": dtype}),
        ("stages", module, source, PIXELS),
        ("vision_rounding", source, PIXELS),
        ("_compare", "with stages", tmp_path, module, EXPECTED, dtype),
        *(again if precision == "int8" else []),
        ("drop_outputs",),
        (write, f"{final} without 0", tmp_path, chosen, ["vision/encoder/output", "vision/projector/output"]),
        ("drop_outputs",),
        ("_fuse", f"{final} without 2", tmp_path, "vision", chosen),
        *(("check_tensorrt", tmp_path, graph, options.get("tensorrt")) for graph in (["vision", *graphs] if split else ["vision"])),
        ("verify_frame_by_frame", running, module, f"tokens {precision}", EXPECTED, precision),
        *(half_precision if dtype == "fp16" else []),
        ("save_vision", tmp_path / "reference", EXPECTED, "pixel_values"),
    ]
    np.testing.assert_equal(calls, expected)
    assert engines == [tmp_path / f"{graph}.onnx" for graph in graphs] and running.closed
    assert made.verified == [f"rows {precision}", "frame by frame", *(["in float16"] if dtype == "fp16" else [])]
    assert made.passes == ["passes", *(["quantize"] if precision == "int8" else []), "split" if split else "loop", "fuse"]
    assert made.quantized == ({"vision": REPORT} if precision == "int8" else {})
    assert made.tensorrt == dict.fromkeys(["vision", *graphs] if split else ["vision"], "parsed")
    tensors = zip(OUTPUTS, ("vision/encoder/output", "vision/projector/output", "visual_tokens"), (1, 2, 3), strict=True)
    assert made.stages == [StageTensor(name, "vision", tensor, every, 0.25) for name, tensor, every in tensors]
    assert made.visual_tokens is OUTPUTS["visual_tokens"]
    assert onnx.load(str(tmp_path / "vision.onnx")).producer_name == "a model"
    assert module.weight.dtype == torch.float32, "a copy is traced in float16"


@pytest.mark.parametrize(("precision", "kind", "expected"), [("fp16", np.float32, torch.float16), ("fp16", np.uint8, torch.uint8), ("fp32", np.float32, torch.float32)])  # fmt: skip
def test_a_clip_is_traced_in_the_graphs_type_and_frames_are_bytes_in_any(precision, kind, expected):
    tensor = vision._tensor(np.full((1, 2), 3, kind), precision)
    assert tensor.dtype == expected and tensor.tolist() == [[3, 3]]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("fp32", torch.float32), ("int8", torch.float32)])
def test_the_module_is_traced_in_float16_where_the_weights_will_be(tmp_path, stub, monkeypatch, precision, dtype):
    class StopHereError(Exception):
        """The rest does not matter."""

    def trace(module, tensor, path, opset):
        assert module.weight.dtype == tensor.dtype == dtype
        raise StopHereError

    stub("Vision", SimpleNamespace(eval=FakeVision))
    stub("make_clip", (INPUTS, PIXELS), owner=vision.reference)
    monkeypatch.setattr(vision, "trace_vision", trace)
    with pytest.raises(StopHereError):
        vision.export_vision(tmp_path, plan(precision=precision))


def test_stages_are_compared_on_an_engine_that_is_closed_afterwards(tmp_path, monkeypatch, calls, stub):
    engine = Closing()
    monkeypatch.setattr(vision, "OnnxEngine", SimpleNamespace(load=lambda model, data: calls.append((model, data)) or engine))
    stub("verify_vision", (["rows"], "tokens"))
    assert vision._compare(GRAPH, tmp_path, "vision", EXPECTED, "fp16") == (["rows"], "tokens")
    assert calls == [(GRAPH.SerializeToString(), tmp_path), ("verify_vision", engine, "vision", EXPECTED, "fp16", "")]
    assert engine.closed


def test_an_encoder_with_flash_attention_that_differs_is_better_exported_without(tmp_path, monkeypatch, calls, stub):
    monkeypatch.setattr(vision, "OnnxEngine", SimpleNamespace(load=lambda model, data: Closing()))
    stub("verify_vision", (["rows"], "tokens"))
    model = onnx.ModelProto()
    model.graph.node.append(onnx.helper.make_node("Attention", ["q", "k", "v"], ["y"]))
    vision._compare(model, tmp_path, "vision", EXPECTED, "fp16")
    assert "float16: pass --attention portable; " in calls[-1][-1]


def test_quantisation_sees_clips_as_the_graph_takes_them(tmp_path, calls, stub):
    model, chosen = onnx.ModelProto(), plan(precision="int8", calibrate="videos", error_budget=0.3)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("visual_tokens", "e/output", "p/output"))
    stub("with_weights", "in memory")
    stub("run_passes", ("joined", ["join"]), slice(0, 2))
    stub("save", lambda model, path: f"{model} saved")
    stub("Clips", "clips")
    stub("quantize_vision", ("quantized", REPORT))
    stub("infer_shapes", lambda model: f"{model}, shapes too", owner=onnx.shape_inference)
    made, (join, row), report = vision._quantize(model, tmp_path, FakeVision(), chosen)
    path = tmp_path / "vision.onnx"
    assert (made, join, report) == ("quantized saved, shapes too", "join", REPORT)
    assert calls == [
        ("with_weights", model, tmp_path),
        ("run_passes", "in memory", ["join_matmuls"], {"graph": "vision", "directory": tmp_path}),
        ("Clips", "how", "videos"),
        ("save", "joined", path),
        ("quantize_vision", "joined saved", tmp_path, ["e/output", "p/output"], (9, 7), "clips", 0.3),
        ("save", "quantized", path),
        ("infer_shapes", "quantized saved"),
    ]
    assert (row.graph, row.name, row.rewrites) == ("vision", "quantize int8", 1) and "1 of 2 layers" in row.note


def test_the_graph_that_runs_frame_by_frame_has_no_stages(tmp_path, calls, stub):
    stub("run_passes", ("looped", ["loop"]))
    stub("drop_outputs", GRAPH)
    assert vision._write_loop("model", tmp_path, plan(), ["a/output"]) == (["vision.loop"], ["loop"])
    assert calls == [
        ("run_passes", "model", ["frame_loop"], {"graph": "vision.loop", "directory": tmp_path}),
        ("drop_outputs", "looped", ["a/output"]),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["vision.loop.onnx"]


def test_encoder_and_compressor_are_cut_from_the_loop(tmp_path, calls, stub):
    encoder, compressor = (
        onnx.helper.make_model(onnx.helper.make_graph([onnx.NodeProto()] * count, name, [], []))
        for count, name in ((3, "e"), (2, "c"))
    )
    stub("run_passes", lambda model, *more, **named: ("looped" if model == "model" else model, ["fuse"]))
    stub("drop_outputs", "looped without stages")
    stub("split", (encoder, compressor))
    names, (row, fuse) = vision._write_split("model", tmp_path, plan(), ["a/output"])
    assert calls == [
        ("run_passes", "model", ["frame_loop"], {"graph": "vision.loop", "directory": tmp_path, "required": ["frame_loop"]}),
        ("drop_outputs", "looped", ["a/output"]),
        ("split", "looped without stages", (9, 7)),
        ("run_passes", compressor, ["fuse_gridpool"], {"graph": "vision.compressor", "directory": tmp_path, "compression": "ptg+evs"}),
    ]  # fmt: skip
    assert row == PassReport("vision.encoder", "split", 3, "2 nodes left for the compressor")
    assert fuse == "fuse" and names == ["vision.encoder", "vision.compressor"]
    assert [onnx.load(str(tmp_path / f"{name}.onnx")).graph.name for name in names] == ["e", "c"]
    assert Path(tmp_path / "vision.onnx").exists() is False
