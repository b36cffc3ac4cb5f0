"""What every backend shares: specs and options, which engine is opened and why another is not, and what feeds must be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import runtime.engine
from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_ENCODER
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, TensorSpec, backend_class, check_feeds, open_engine
from runtime.engine.onnx import OnnxEngine

F32, I64 = np.dtype("float32"), np.dtype("int64")


def test_an_open_first_axis_is_the_batch_and_no_other_may_be_open():
    spec = TensorSpec("past", F32, ("B", 2, 5, 8))
    assert (spec.sizes(), spec.sizes(3)) == ([1, 2, 5, 8], [3, 2, 5, 8])
    zeros = spec.zeros(2)
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((2, 2, 5, 8), F32, False)
    assert spec.zeros().shape == (1, 2, 5, 8) and TensorSpec("x", I64, ()).zeros().shape == ()
    with pytest.raises(EngineError, match=r"^past has shape \['B', 'S'\], expected numbers alone; export the bundle again$"):
        TensorSpec("past", F32, ("B", "S")).sizes()


def test_what_memory_does_not_hold_is_said():
    for size in (1 << 62, 1 << 50):  # more than can be addressed, and more than there is
        with pytest.raises(EngineError, match=rf"^past has shape \[1, {size}\], more than memory holds; export the bundle again$"):
            TensorSpec("past", F32, ("B", size)).zeros()


def test_options_know_every_device_and_count_no_threads_below_0():
    assert EngineOptions() == EngineOptions("auto", 0, False)
    for device in ("auto", "cpu", "cuda", "gpu", "gpu.1", "gpu.12", "npu"):
        assert EngineOptions(device).device == device
    for device in ("gpu.", "cuda:0", "CPU", "cpus", "", "xnpu"):
        with pytest.raises(EngineError, match=f'^device is "{device}", expected auto, cpu, cuda, or for openvino'):
            EngineOptions(device)
    with pytest.raises(EngineError, match=r"^threads is -1, expected 0 \(the backend's choice\) or more$"):
        EngineOptions(threads=-1)


def test_a_device_is_taken_where_none_was_chosen():
    assert EngineOptions("auto", 3, True).on("cuda") == EngineOptions("cuda", 3, True)
    assert EngineOptions("cpu", 3).on("cuda") == EngineOptions("cpu", 3)


def test_a_backend_is_found_by_its_name():
    assert backend_class("onnx") is OnnxEngine
    with pytest.raises(EngineError, match=r'^no backend "onxx"; did you mean "onnx"\?$'):
        backend_class("onxx")


class Backend:
    """One that runs unless `reason` says why not; `asked` notes what it opens."""

    outputs: tuple[str, ...] | None = None

    def __init__(self, name: str, reason: str | None = None, takes_bf16: bool = False, broken: str = ""):
        self.name, self.reason, self.takes_bf16, self.broken, self.asked = name, reason, takes_bf16, broken, []

    def unavailable(self, device: str) -> str | None:
        self.device = device
        return self.reason

    def open(self, bundle, graph, options):
        if self.broken:
            raise EngineError(self.broken)
        self.asked.append((graph, options))
        spec = TensorSpec("x", F32, (2, 3))
        names = (("logits",) if graph.startswith("llm/") else ("visual_tokens",)) if self.outputs is None else self.outputs
        outputs = tuple(TensorSpec(name, F32, (1, 3)) for name in names)
        return SimpleNamespace(backend=self.name, device=options.device, inputs=(spec,), outputs=outputs)


@pytest.fixture
def backends(monkeypatch):
    """Let these backends be the registry's; on a CPU `measured` is what was measured."""

    def install(*some: Backend, measured=None) -> SimpleNamespace:
        named = {one.name: one for one in some}
        monkeypatch.setattr(runtime.engine, "BACKENDS", dict.fromkeys(named, ""))
        monkeypatch.setattr(runtime.engine, "backend_class", named.__getitem__)
        monkeypatch.setattr(runtime.engine.tuning, "chosen", lambda bundle, graph: measured)
        return SimpleNamespace(path=Path("b"), is_split=False)

    return install


CPU, CUDA = EngineOptions("cpu"), EngineOptions("cuda")


def test_the_backend_that_is_named_is_opened_or_says_why_not(backends):
    onnx, openvino = Backend("onnx"), Backend("openvino", takes_bf16=True)
    broken = Backend("tensorrt", reason="no driver")
    bundle = backends(onnx, openvino, broken)
    assert open_engine(bundle, VISION, "onnx", CPU).backend == "onnx"
    assert (onnx.device, onnx.asked) == ("cpu", [(VISION, CPU)])
    bf16 = EngineOptions("cpu", bf16=True)
    assert open_engine(bundle, DECODER, "openvino", bf16).backend == "openvino" and openvino.asked == [(DECODER, bf16)]
    assert open_engine(bundle, DECODER, "openvino", CPU).backend == "openvino"
    with pytest.raises(EngineError, match=r"^backend onnx has no bf16 to switch on; pass --backend openvino, or leave --bf16 out$"):
        open_engine(bundle, VISION, "onnx", bf16)
    with pytest.raises(EngineError, match=r"^backend tensorrt can't run here: no driver$"):
        open_engine(bundle, VISION, "tensorrt", CUDA)


def test_auto_passes_over_what_can_not_run_or_has_no_engine(backends):
    tensorrt, rtx, onnx = Backend("tensorrt", reason="no driver"), Backend("tensorrt-rtx", broken="no engine"), Backend("onnx")
    bundle = backends(tensorrt, rtx, onnx)
    assert open_engine(bundle, VISION, options=CUDA).backend == "onnx"
    assert (tensorrt.asked, onnx.asked) == ([], [(VISION, CUDA)])
    onnx.reason = "no provider"
    with pytest.raises(EngineError) as refused:
        open_engine(bundle, VISION, "auto", CUDA)
    assert str(refused.value) == (
        "no backend can run vision on cuda: tensorrt: no driver; tensorrt-rtx: no engine; onnx: no provider"
    )


@pytest.mark.parametrize(
    ("measured", "reason", "asked", "opened", "threads"),
    [
        (None, None, 0, "onnx", 0),
        (("openvino", 3), None, 0, "openvino", 3),
        (("openvino", 3), None, 2, "openvino", 2),
        (("openvino", 3), "not installed", 0, "onnx", 0),
        (("onnx", 4), None, 0, "onnx", 4),
        (("none of ours", 3), None, 0, "onnx", 0),
    ],
)
def test_on_a_cpu_auto_takes_what_was_measured_with_its_threads(backends, measured, reason, asked, opened, threads):
    choice = measured and SimpleNamespace(backend=measured[0], threads=measured[1])
    bundle = backends(Backend("onnx"), Backend("openvino", reason=reason), measured=choice)
    options = EngineOptions("cpu", asked)
    order, chosen = runtime.engine._order(bundle, VISION, options)
    assert order == (["openvino", "onnx"] if opened == "openvino" else ["onnx"])
    assert chosen == EngineOptions("cpu", threads)
    assert open_engine(bundle, VISION, "auto", options).backend == opened


def test_the_vision_half_of_a_split_bundle_is_two_graphs(backends):
    onnx = Backend("onnx")
    bundle = backends(onnx)
    bundle.is_split = True
    engine = open_engine(bundle, VISION, "onnx", CPU)
    assert onnx.asked == [(VISION_ENCODER, CPU), (VISION_COMPRESSOR, CPU)]
    assert engine.inputs == (TensorSpec("x", F32, (2, 3)),)
    onnx.asked.clear()
    open_engine(bundle, DECODER, "onnx", CPU)
    assert onnx.asked == [(DECODER, CPU)]


@pytest.mark.parametrize(
    ("graph", "is_split", "outputs", "message"),
    [
        (VISION, False, ("logits",), "the vision graph has no output visual_tokens; export the bundle again"),
        (VISION, True, ("logits",), "the vision graph has no output visual_tokens; export the bundle again"),
        (DECODER, False, ("visual_tokens", "present.0.key"), "the decoder has no output logits; export the bundle again"),
        (DECODER_BATCH, False, (), "the decoder has no output logits; export the bundle again"),
    ],
)
def test_a_graph_without_its_result_is_not_opened(backends, graph, is_split, outputs, message):
    onnx = Backend("onnx")
    bundle = backends(onnx)
    bundle.is_split = is_split
    onnx.outputs = outputs
    with pytest.raises(EngineError, match=f"^{message}$"):
        open_engine(bundle, graph, "onnx", CPU)


SPECS = (TensorSpec("ids", I64, (1, "S")), TensorSpec("x", F32, (1, "S", 4)), TensorSpec("past", F32, (1, 2)))


def feeds(**changes) -> dict[str, np.ndarray]:
    return {"ids": np.zeros((1, 3), I64), "x": np.zeros((1, 3, 4), F32)} | changes


def test_feeds_that_fit_pass():
    check_feeds(SPECS, feeds(), frozenset({"past"}))
    check_feeds(SPECS, feeds(past=np.zeros((1, 2), F32)))
    check_feeds((TensorSpec("x", F32, ()),), {"x": np.zeros((), F32)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"past": np.zeros((1, 2), F32)}, r"^inputs are \['ids', 'past', 'x'\], the graph takes \['ids', 'x'\]$"),
        ({"ids": np.zeros((1, 3), np.int32)}, "^ids is int32, the graph takes int64$"),
        ({"ids": np.zeros((2, 3), I64)}, r"^ids has shape \[2, 3\], the graph takes \[1, 'S'\]$"),
        ({"ids": np.zeros((1, 3, 1), I64)}, r"^ids has shape \[1, 3, 1\], "),
        ({"x": np.zeros((1, 2, 4), F32)}, r"^x has shape \[1, 2, 4\], the graph takes \[1, 'S', 4\]$"),
        ({"x": np.zeros((2, 3, 4), F32)}, r"^x has shape \[2, 3, 4\], "),
        ({"x": np.zeros((1, 3), F32)}, r"^x has shape \[1, 3\], "),
    ],
)
def test_feeds_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(EngineError, match=message):
        check_feeds(SPECS, feeds(**changes), frozenset({"past"}))
