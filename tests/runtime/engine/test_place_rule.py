"""The rules of `--device auto`, `build --backend auto` and `--plugin`, without a bundle's files: every branch and its words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugins.op import DOMAIN
from plugins.tensorrt import drop_body
from runtime.core.errors import EngineError, UserError
from runtime.engine import EngineOptions, cuda, place
from runtime.engine import trt_api as facade
from runtime.engine.trt_plugin import PluginChoice, has_plugin_layer
from runtime.engine.trt_target import backend_that_builds

GPU = cuda.Gpu("Orin", (8, 7), 8 << 30)
GRAPHS = ["vision.onnx", "llm/decoder.onnx"]


def bundle_of(*files: str, split: bool = False) -> SimpleNamespace:
    return SimpleNamespace(is_split=split, manifest=SimpleNamespace(files=files))


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
        monkeypatch.setattr(place, "has_cuda_provider", lambda: provider)
        monkeypatch.setattr(place, "backend_class", Backend)
        monkeypatch.setattr(place, "find_engine", find_engine)

    return make


@pytest.mark.parametrize("device", ["cpu", "cuda", "gpu", "gpu.1", "npu"])
def test_a_device_that_is_named_stays(here, device):
    here(gpus=())
    options = EngineOptions(device, 3)
    for backend in ("auto", "tensorrt", "openvino", "onnx"):
        assert place.place(bundle_of(*GRAPHS), backend, options) == place.Placement(options, "")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_has_the_gpu_alone(here, backend):
    here()
    assert place.place(bundle_of(*GRAPHS), backend, EngineOptions(threads=2)) == place.Placement(EngineOptions("cuda", 2))
    here(gpus=())
    with pytest.raises(EngineError, match=rf"^backend {backend} can't run here: no NVIDIA driver; use --device cpu; or none$"):
        place.place(bundle_of(*GRAPHS), backend)


def test_openvino_and_bf16_are_for_the_cpu(here):
    for gpus in ((), (GPU,)):
        here(gpus=gpus)
        assert place.place(bundle_of(*GRAPHS), "openvino") == place.Placement(EngineOptions("cpu"))
        assert place.place(bundle_of(*GRAPHS), "auto", EngineOptions(bf16=True)) == place.Placement(EngineOptions("cpu", bf16=True))


@pytest.mark.parametrize("backend", ["auto", "onnx"])
def test_without_a_gpu_it_is_said_only_where_one_could_have_been_used(here, backend):
    for provider, note in ((True, "device cpu: no NVIDIA driver"), (False, "")):
        here(gpus=(), provider=provider)
        assert place.place(bundle_of(*GRAPHS), backend) == place.Placement(EngineOptions("cpu"), note)


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
    placed = place.place(bundle_of(*GRAPHS), *(() if backend == "auto" else (backend,)))
    assert placed == place.Placement(EngineOptions("cuda" if note.startswith("device cuda") else "cpu"), note)


@pytest.mark.parametrize(
    ("files", "split", "graphs"),
    [
        (GRAPHS, False, ["vision", "llm/decoder"]),
        (["vision.onnx", "vision.loop.onnx", "vision.encoder.onnx"], False, ["vision"]),
        (["llm/decoder.onnx"], False, ["llm/decoder"]),
        (["vision.encoder.onnx", "vision.compressor.onnx", "vision.onnx"], True, ["vision.encoder", "vision.compressor"]),
        ([*GRAPHS, "vision.encoder.onnx", "vision.compressor.onnx"], True, ["vision.encoder", "vision.compressor", "llm/decoder"]),
    ],
)
def test_tensorrt_needs_engines_of_the_graphs_that_answer_questions(here, monkeypatch, files, split, graphs):
    here()
    asked = []
    monkeypatch.setattr(place, "find_engine", lambda bundle, backend, graph: asked.append(graph))
    assert place.place(bundle_of(*files, split=split)).options.device == "cuda"
    assert asked == graphs


@pytest.mark.parametrize(
    ("files", "split", "on_cpu", "on_gpu"),
    [
        (["vision.onnx"], False, ("vision",), ("vision",)),
        (["vision.onnx", "vision.loop.onnx"], False, ("vision.loop",), ("vision",)),
        (["vision.onnx"], True, ("vision.encoder", "vision.compressor"), ("vision.encoder", "vision.compressor")),
    ],
)
def test_a_cpu_encodes_frame_by_frame_where_the_bundle_has_such_a_graph(files, split, on_cpu, on_gpu):
    bundle = bundle_of(*files, split=split)
    assert place.vision_graphs(bundle, "cpu") == on_cpu
    assert [place.vision_graphs(bundle, device) for device in ("cuda", "gpu", "npu")] == [on_gpu] * 3


class TestBuildBackend:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch):
        """installed({backend: version, or what is wrong with it}, no_gpu)"""

        def make(packages: dict[str, object], no_gpu: str | None) -> None:
            def load(backend: str) -> SimpleNamespace:
                if not isinstance(packages.get(backend), str):
                    raise packages.get(backend) or UserError(f"{backend} is not installed")
                return SimpleNamespace(__version__=packages[backend])

            monkeypatch.setattr(facade, "installed", lambda backend: backend in packages)
            monkeypatch.setattr(facade, "load", load)
            monkeypatch.setattr(cuda, "gpus", lambda: () if no_gpu else (GPU,))
            monkeypatch.setattr(cuda, "no_gpu", lambda: no_gpu)

        return make

    @pytest.mark.parametrize("choice", ["aot", "a.so"])
    def test_a_plugin_is_for_tensorrt(self, installed, choice):
        installed({}, "no GPU")
        assert backend_that_builds(choice) == ("tensorrt", "backend tensorrt: only it takes a plugin")

    @pytest.mark.parametrize(
        ("packages", "no_gpu", "backend", "line"),
        [
            ({"tensorrt": "10.3", "tensorrt-rtx": "1.7"}, None, "tensorrt", "backend tensorrt: 10.3, for Orin"),
            ({"tensorrt-rtx": "1.7"}, None, "tensorrt-rtx", "backend tensorrt-rtx, not tensorrt: tensorrt is not installed"),
            ({"tensorrt-rtx": "1.7"}, "no GPU", "tensorrt-rtx", "backend tensorrt-rtx, not tensorrt: tensorrt is not installed"),
            ({"tensorrt": UserError("no libnvinfer"), "tensorrt-rtx": "1"}, None, "tensorrt-rtx",
             "backend tensorrt-rtx, not tensorrt: no libnvinfer"),
            ({"tensorrt": "10.3", "tensorrt-rtx": "1.7"}, "no GPU; buy one; soon", "tensorrt-rtx",
             "backend tensorrt-rtx, not tensorrt: tensorrt builds on the GPU that it builds for, and no GPU"),
        ],
    )  # fmt: skip
    def test_tensorrt_where_it_can_build_else_rtx(self, installed, packages, no_gpu, backend, line):
        installed(packages, no_gpu)
        assert backend_that_builds("none") == (backend, line)

    def test_where_none_builds_both_reasons_are_said(self, installed):
        installed({}, None)
        with pytest.raises(
            EngineError, match=r"^nothing here builds .*: tensorrt is not installed; tensorrt-rtx is not installed$"
        ):
            backend_that_builds("none")


class TestPlugin:
    def test_a_choice_is_none_aot_or_a_file(self, tmp_path):
        library = tmp_path / "a.so"
        library.write_bytes(b"abc")
        assert PluginChoice() == PluginChoice("none", None) and PluginChoice().key == "none"
        for backend in ("tensorrt", "tensorrt-rtx"):
            assert PluginChoice.parse("none", backend) == PluginChoice("none")
        assert PluginChoice.parse("aot", "tensorrt") == PluginChoice("aot") and PluginChoice("aot").key == "aot"
        choice = PluginChoice.parse(str(library), "tensorrt")
        assert choice == PluginChoice("library", library)
        sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
        assert choice.key == f"library:{sha}"
        for text in ("aot", str(library)):
            with pytest.raises(EngineError, match=r"is for --backend tensorrt; tensorrt-rtx builds the plain nodes"):
                PluginChoice.parse(text, "tensorrt-rtx")
        for missing in (tmp_path, tmp_path / "b.so"):
            with pytest.raises(EngineError, match=rf"^no plugin library at {missing}; "):
                PluginChoice.parse(str(missing), "tensorrt")

    @pytest.mark.parametrize(
        ("domains", "kept"), [([DOMAIN], []), (["other", DOMAIN, "more"], ["other", "more"]), (["other"], ["other"]), ([], [])]
    )
    def test_only_the_plugin_s_function_loses_its_body(self, domains, kept):
        model = SimpleNamespace(functions=[SimpleNamespace(domain=domain) for domain in domains])
        assert drop_body(model) is (DOMAIN in domains)
        assert [function.domain for function in model.functions] == kept

    @pytest.mark.parametrize(
        ("kinds", "has_one"), [([], False), (["A"], False), (["P"], True), (["A", "P"], True), (["P", "A"], True)]
    )
    def test_a_network_took_the_plugin_where_any_layer_is_one(self, monkeypatch, kinds, has_one):
        monkeypatch.setattr(facade, "load", lambda backend: SimpleNamespace(LayerType=SimpleNamespace(PLUGIN_V3="P")))
        layers = [SimpleNamespace(type=kind) for kind in kinds]
        network = SimpleNamespace(num_layers=len(kinds), get_layer=layers.__getitem__)
        assert has_plugin_layer("tensorrt", network) is has_one
