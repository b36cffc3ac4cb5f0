"""What every backend shares: specs and options, which engine is opened and why another is not, and what feeds must be."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of
from refusal import naming

import runtime.engine.open as opening
from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, TensorSpec, backend_class, check_feeds, open_engine, open_engines
from runtime.engine.onnx import OnnxEngine

F32, I64 = np.dtype("float32"), np.dtype("int64")


def test_an_open_first_axis_is_the_batch_and_no_other_may_be_open():
    spec = TensorSpec("past", F32, ("B", 2, 5, 8))
    assert (spec.sizes(), spec.sizes(3)) == ([1, 2, 5, 8], [3, 2, 5, 8])
    zeros = spec.zeros(2)
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((2, 2, 5, 8), F32, False)
    assert spec.zeros().shape == (1, 2, 5, 8) and TensorSpec("x", I64, ()).zeros().shape == ()
    with pytest.raises(EngineError, match=naming("past", "['B', 'S']")):
        TensorSpec("past", F32, ("B", "S")).sizes()
    with pytest.raises(EngineError):
        TensorSpec("past", F32, (None, 2)).sizes()


def test_a_buffer_that_does_not_fit_in_memory_is_refused():
    for size in (1 << 62, 1 << 50):  # more than can be addressed, and more than there is
        with pytest.raises(EngineError, match=naming("past", f"[1, {size}]")):
            TensorSpec("past", F32, ("B", size)).zeros()


def test_options_know_every_device_and_count_no_threads_below_0():
    assert EngineOptions() == EngineOptions("auto", 0, False)
    for device in ("auto", "cpu", "cuda", "gpu", "gpu.1", "gpu.12", "npu"):
        assert EngineOptions(device).device == device
    for device in ("gpu.", "cuda:0", "CPU", "cpus", "", "xnpu"):
        with pytest.raises(EngineError, match=f'^device is "{device}"'):
            EngineOptions(device)
    with pytest.raises(EngineError, match=r"^threads is -1"):
        EngineOptions(threads=-1)


def test_a_device_is_taken_where_none_was_chosen():
    assert EngineOptions("auto", 3, True).on("cuda") == EngineOptions("cuda", 3, True)
    assert EngineOptions("cpu", 3).on("cuda") == EngineOptions("cpu", 3)


def test_a_backend_is_found_by_its_name():
    assert backend_class("onnx") is OnnxEngine
    with pytest.raises(EngineError, match=r'"onxx".*"onnx"'):
        backend_class("onxx")


class Backend:
    """One that runs unless `reason` says why not; `asked` notes what it opens."""

    outputs: tuple[str, ...] | None = None
    takes_batches = True
    broken_graph = ""

    def __init__(self, name: str, reason: str | None = None, takes_bf16: bool = False, broken: str = ""):
        self.backend, self.reason, self.takes_bf16, self.broken, self.asked = name, reason, takes_bf16, broken, []

    def unavailable(self, device: str) -> str | None:
        self.device = device
        return self.reason

    def open(self, bundle, graph, options):
        if self.broken or graph == self.broken_graph:
            raise EngineError(self.broken)
        self.asked.append((graph, options))
        spec = TensorSpec("x", F32, (2, 3))
        names = (("logits",) if graph.startswith("llm/") else ("visual_tokens",)) if self.outputs is None else self.outputs
        outputs = tuple(TensorSpec(name, F32, (1, 3)) for name in names)
        closed = lambda: self.asked.append("closed")  # noqa: E731
        return SimpleNamespace(backend=self.backend, device=options.device, inputs=(spec,), outputs=outputs, close=closed)


@pytest.fixture
def backends(monkeypatch):
    """Let these backends be the registry's; on a CPU `measured` is what was measured."""

    def install(*some: Backend, measured=None) -> SimpleNamespace:
        named = {one.backend: one for one in some}
        monkeypatch.setattr(opening, "BACKENDS", dict.fromkeys(named, ""))
        monkeypatch.setattr(opening, "backend_class", named.__getitem__)
        monkeypatch.setattr(opening.tuning, "chosen", lambda bundle, graph: measured)
        return bundle_of(f"{DECODER_BATCH}.onnx")

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
    with pytest.raises(EngineError, match=r"^backend onnx .* bf16"):
        open_engine(bundle, VISION, "onnx", bf16)
    with pytest.raises(EngineError, match=r"^backend tensorrt .*: no driver$"):
        open_engine(bundle, VISION, "tensorrt", CUDA)


def test_auto_passes_over_what_can_not_run_or_has_no_engine(backends):
    tensorrt, rtx, onnx = Backend("tensorrt", reason="no driver"), Backend("tensorrt-rtx", broken="no engine"), Backend("onnx")
    bundle = backends(tensorrt, rtx, onnx)
    assert open_engine(bundle, VISION, options=CUDA).backend == "onnx"
    assert (tensorrt.asked, onnx.asked) == ([], [(VISION, CUDA)])
    onnx.reason = "no provider"
    with pytest.raises(
        EngineError,
        match=naming("vision", "cuda", "tensorrt can't run here: no driver", "no engine", "onnx can't run here: no provider"),
    ):
        open_engine(bundle, VISION, "auto", CUDA)


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
    order, chosen = opening._order(bundle, VISION, options)
    assert order == (["openvino", "onnx"] if opened == "openvino" else ["onnx"])
    assert chosen == EngineOptions("cpu", threads)
    assert open_engine(bundle, VISION, "auto", options).backend == opened


def test_several_graphs_are_opened_on_one_backend(backends):
    tensorrt, onnx = Backend("tensorrt"), Backend("onnx")
    bundle = backends(tensorrt, Backend("tensorrt-rtx", reason="not installed"), onnx)
    tensorrt.broken_graph = VISION_COMPRESSOR
    engines = open_engines(bundle, (VISION_ENCODER, VISION_COMPRESSOR), options=CUDA)
    assert [engine.backend for engine in engines] == ["onnx", "onnx"]
    assert onnx.asked == [(VISION_ENCODER, CUDA), (VISION_COMPRESSOR, CUDA)]
    assert tensorrt.asked == [(VISION_ENCODER, CUDA), "closed"], "what was opened is closed where another graph does not load"


@pytest.mark.parametrize(("takes_batches", "files"), [(True, []), (False, [f"{DECODER_BATCH}.onnx"])])
def test_the_decoder_of_one_conversation_stands_in_for_that_of_a_batch(backends, takes_batches, files):
    onnx = Backend("onnx")
    onnx.takes_batches = takes_batches
    backends(onnx)
    open_engine(bundle_of(*files), DECODER_BATCH, "onnx", CPU)
    onnx.takes_batches = True
    open_engine(bundle_of(f"{DECODER_BATCH}.onnx"), DECODER_BATCH, "onnx", CPU)
    assert onnx.asked == [(DECODER, CPU), (DECODER_BATCH, CPU)]


@pytest.mark.parametrize(
    ("graph", "outputs", "missing"),
    [
        (VISION, ("logits",), "visual_tokens"),
        (VISION_LOOP, ("logits",), "visual_tokens"),
        (VISION_COMPRESSOR, ("features",), "visual_tokens"),
        (DECODER, ("visual_tokens", "present.0.key"), "logits"),
        (DECODER_BATCH, (), "logits"),
    ],
)
def test_a_graph_without_its_result_is_closed_again(backends, graph, outputs, missing):
    onnx = Backend("onnx")
    bundle = backends(onnx)
    onnx.outputs = outputs
    with pytest.raises(EngineError, match=f"has no output {missing}"):
        open_engine(bundle, graph, "onnx", CPU)
    assert onnx.asked[1:] == ["closed"]


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
