"""The rules of `--device auto`, `build --backend auto` and `--plugin`, without a bundle's files: every branch and its words."""

from __future__ import annotations

import pytest
from manifests import bundle_of

from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, Placement, cuda, place, placed
from runtime.engine import open as opening

GPU = cuda.Gpu("Orin", (8, 7), 8 << 30)
GRAPHS = ["vision.onnx", "llm/decoder.onnx"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    """here(gpus, provider, unavailable, engines): a machine; `engines`: {backend: its graphs}, `unavailable`: {backend: why}."""

    def make(gpus=(GPU,), provider=True, unavailable=None, engines=None):
        class Backend:
            def __init__(self, name: str):
                self.name = name

            def unavailable(self, device: str) -> str | None:
                assert device == "cuda"
                return (unavailable or {}).get(self.name)

        def find_engine(bundle: object, backend: str, graph: str) -> None:
            if graph not in (engines or {}).get(backend, ()):
                raise EngineError(f"no engine of {graph}")

        monkeypatch.setattr(cuda, "gpus", lambda: gpus)
        monkeypatch.setattr(cuda, "no_gpu", lambda: None if gpus else "no NVIDIA driver; use --device cpu; or none")
        monkeypatch.setattr(opening, "has_cuda_provider", lambda: provider)
        monkeypatch.setattr(opening, "backend_class", Backend)
        monkeypatch.setattr(opening, "find_engine", find_engine)

    return make


@pytest.mark.parametrize("device", ["cpu", "cuda", "gpu", "gpu.1", "npu"])
def test_a_device_that_is_named_stays(here, device):
    here(gpus=())
    options = EngineOptions(device, 3)
    for backend in ("auto", "tensorrt", "openvino", "onnx"):
        assert place(bundle_of(*GRAPHS), backend, options) == Placement(options, "")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_has_the_gpu_alone(here, backend):
    here()
    assert place(bundle_of(*GRAPHS), backend, EngineOptions(threads=2)) == Placement(EngineOptions("cuda", 2))
    here(gpus=())
    with pytest.raises(EngineError, match=rf"^backend {backend} .*: no NVIDIA driver"):
        place(bundle_of(*GRAPHS), backend)


def test_openvino_and_bf16_are_for_the_cpu(here):
    for gpus in ((), (GPU,)):
        here(gpus=gpus)
        assert place(bundle_of(*GRAPHS), "openvino") == Placement(EngineOptions("cpu"))
        assert place(bundle_of(*GRAPHS), "auto", EngineOptions(bf16=True)) == Placement(EngineOptions("cpu", bf16=True))


@pytest.mark.parametrize("backend", ["auto", "onnx"])
def test_without_a_gpu_it_is_said_only_where_one_could_have_been_used(here, backend):
    for provider, note in ((True, "device cpu: no NVIDIA driver"), (False, "")):
        here(gpus=(), provider=provider)
        assert place(bundle_of(*GRAPHS), backend) == Placement(EngineOptions("cpu"), note)


@pytest.mark.parametrize(
    ("backend", "unavailable", "engines", "note"),
    [
        ("auto", {}, {"tensorrt": ("vision", "llm/decoder")}, "device cuda: Orin, backend tensorrt"),
        ("auto", {"tensorrt": "no"}, {"tensorrt-rtx": ("vision", "llm/decoder")}, "device cuda: Orin, backend tensorrt-rtx"),
        ("auto", {}, {"tensorrt": ("vision",), "tensorrt-rtx": ("llm/decoder",)}, "device cuda: Orin, backend onnx"),
        (
            "auto",
            {"tensorrt": "not installed", "onnx": "no provider"},
            {"tensorrt-rtx": ("vision",)},
            "device cpu, not Orin: tensorrt: not installed; tensorrt-rtx: no engine of llm/decoder; onnx: no provider",
        ),
        ("onnx", {}, {"tensorrt": ("vision", "llm/decoder")}, "device cuda: Orin, backend onnx"),
        ("onnx", {"onnx": "no provider"}, {}, "device cpu, not Orin: onnx: no provider"),
    ],
)
def test_the_gpu_is_taken_where_a_backend_runs_every_graph(here, backend, unavailable, engines, note):
    here((GPU, cuda.Gpu("other", (9, 0), 1)), unavailable=unavailable, engines=engines)
    placement = place(bundle_of(*GRAPHS), *(() if backend == "auto" else (backend,)))
    assert placement == Placement(EngineOptions("cuda" if note.startswith("device cuda") else "cpu"), note)


@pytest.mark.parametrize(
    ("files", "split", "graphs"),
    [
        (GRAPHS, False, ["vision", "llm/decoder"]),
        (["vision.onnx", "vision.loop.onnx"], False, ["vision"]),
        (["llm/decoder.onnx"], False, ["llm/decoder"]),
        (["vision.encoder.onnx", "vision.compressor.onnx", "vision.onnx"], True, ["vision.encoder", "vision.compressor"]),
        ([*GRAPHS, "vision.encoder.onnx", "vision.compressor.onnx"], True, ["vision.encoder", "vision.compressor", "llm/decoder"]),
    ],
)
def test_tensorrt_needs_engines_of_the_graphs_that_answer_questions(here, monkeypatch, files, split, graphs):
    here()
    asked = []
    monkeypatch.setattr(opening, "find_engine", lambda bundle, backend, graph: asked.append(graph))
    assert place(bundle_of(*files, split=split)).options.device == "cuda"
    assert asked == graphs


@pytest.mark.parametrize("note", ["", "device cpu: no GPU"])
def test_where_auto_had_a_choice_it_is_logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, note: str) -> None:
    asked = []
    placement = Placement(EngineOptions("cpu", 2), note)
    monkeypatch.setattr(opening, "place", lambda *arguments: asked.append(arguments) or placement)
    assert placed("bundle", "onnx", EngineOptions("auto", 2, True)) == placement.options
    assert asked == [("bundle", "onnx", EngineOptions("auto", 2, True))]
    assert capsys.readouterr().err == (f"{note}\n" if note else "")
