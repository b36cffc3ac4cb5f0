"""The steps of a build on stand-ins for TensorRT: what is kept and written, the profile, what is said on the way. No engine is real."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming
from trt_bundle import make_bundle

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError
from runtime.engine import cuda, trt_records
from runtime.engine import trt_api as trt
from runtime.engine import trt_build as build_module
from runtime.engine.trt_build import BuildOptions, BuiltEngine, PluginChoice, build
from runtime.engine.trt_records import find_engine

HERE = cuda.Gpu("Test GPU", (8, 9), 2**34)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[cuda.Gpu]:
    """The GPUs of a machine with TensorRT 10.3."""
    gpus, known = [HERE], SimpleNamespace(__members__={"NONE": 0, "SM86": 1, "SM120": 2})
    monkeypatch.setattr(trt, "load", lambda backend: SimpleNamespace(__version__="10.3.0", ComputeCapability=known))
    monkeypatch.setattr(cuda, "gpus", lambda: tuple(gpus))
    monkeypatch.setattr(cuda, "no_gpu", lambda: None if gpus else "there is no GPU")
    return gpus


def test_an_engine_in_json_has_its_path_as_text_and_its_size_in_bytes():
    assert BuiltEngine("vision", Path("e/vision.engine"), 5, 1.5, False).as_dict() == {
        "graph": "vision", "path": "e/vision.engine", "bytes": 5, "seconds": 1.5, "reused": False,
    }  # fmt: skip


class TestBuild:
    @pytest.fixture
    def bundle(self, tmp_path: Path, machine: list, monkeypatch: pytest.MonkeyPatch) -> Bundle:
        self.built: list[tuple] = []

        def build_graph(bundle, graph, options, target, plugin, goal):
            self.built.append((graph, target, plugin.kind))
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_bytes(graph.encode())
            return {"onnx_sha256": bundle.sha256(graph), "size": len(graph), "seconds": 2.5, "inputs": {}, "plugin": "none"}

        monkeypatch.setattr(build_module, "_build_graph", build_graph)
        return make_bundle(tmp_path / "bundle")

    def test_what_was_built_is_recorded_and_reused(self, bundle: Bundle, capsys: pytest.CaptureFixture) -> None:
        directory = bundle.path / "engines" / "tensorrt-sm89-fp32"
        files = [directory / "vision.engine", directory / "llm/decoder.engine"]
        assert build(bundle, BuildOptions("tensorrt")) == [
            BuiltEngine(VISION, files[0], 6, 2.5, False), BuiltEngine(DECODER, files[1], 11, 2.5, False),
        ]  # fmt: skip
        assert self.built == [(VISION, "sm89", "none"), (DECODER, "sm89", "none")]
        entries = {
            graph: {"onnx_sha256": bundle.sha256(graph), "size": len(graph), "seconds": 2.5, "inputs": {}, "plugin": "none"}
            for graph in (VISION, DECODER)
        }
        assert json.loads((directory / "build.json").read_text()) == {
            "schema_version": 1, "backend": "tensorrt", "version": "10.3.0", "target": "sm89", "precision": "fp32",
            "plugin": PluginChoice().key, "built_on": "Test GPU", "graphs": entries,
        }  # fmt: skip
        assert capsys.readouterr().err == ""
        again = build(bundle, BuildOptions("tensorrt"))
        assert [one.reused for one in again] == [True, True] and len(self.built) == 2
        said = sorted(capsys.readouterr().err.splitlines())
        assert said == [
            f"{graph}: {file} is up to date; --force builds it again" for graph, file in ((DECODER, files[1]), (VISION, files[0]))
        ]

    def test_the_engine_that_is_kept_lies_beside_the_new_one(self, bundle: Bundle, capsys: pytest.CaptureFixture) -> None:
        decoder = build(bundle, BuildOptions("tensorrt"))[1].path
        before = decoder.stat().st_ino
        forced = build(bundle, BuildOptions("tensorrt", graphs=(VISION,), force=True))
        assert [(one.graph, one.reused) for one in forced] == [(VISION, False)]
        assert decoder.stat().st_ino == before
        record = json.loads((decoder.parents[1] / "build.json").read_text())
        assert sorted(record["graphs"]) == [DECODER, VISION]
        assert "is up to date" not in capsys.readouterr().err

    def test_without_a_gpu_none_is_recorded_and_the_plugins_library_is_copied(
        self, bundle: Bundle, machine: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library, registered = tmp_path / "plugin.so", []
        library.write_bytes(b"code")
        choice = PluginChoice("library", library)
        monkeypatch.setattr(PluginChoice, "parse", classmethod(lambda cls, text, backend: choice))
        monkeypatch.setattr(PluginChoice, "register", lambda self, backend: registered.append(backend))
        machine.clear()
        (engine,) = build(bundle, BuildOptions("tensorrt-rtx", graphs=(VISION,), target="any", plugin=str(library)))
        assert registered == ["tensorrt-rtx"] and self.built == [(VISION, "any", "library")]
        assert (engine.path.parent / build_module.PLUGIN_LIBRARY).read_bytes() == b"code"
        assert json.loads((engine.path.parent / "build.json").read_text())["built_on"] is None

    def test_several_architectures_are_one_directory(self, bundle: Bundle) -> None:
        (engine,) = build(bundle, BuildOptions("tensorrt-rtx", graphs=(VISION,), target="sm86,sm120,sm86"))
        assert engine.path == bundle.path / "engines" / "tensorrt-rtx-sm86+sm120-fp32" / "vision.engine"
        for target in ("sm99", "any,sm86", "sm86,sm99"):
            with pytest.raises(EngineError, match=naming("tensorrt-rtx", "any, current, sm86, sm120")):
                build(bundle, BuildOptions("tensorrt-rtx", target=target))

    def test_auto_says_what_it_chose(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        monkeypatch.setattr(build_module, "backend_that_builds", lambda needs_plugin: ("tensorrt-rtx", f"plugin: {needs_plugin}"))
        (engine,) = build(bundle, BuildOptions(graphs=(VISION,)))
        assert engine.path.parent.name == "tensorrt-rtx-any-fp32"
        assert capsys.readouterr().err == "plugin: False\n"


class TestGraph:
    """One graph, on a builder that hands out six bytes."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list:
        asked: list = []
        self.config = config = SimpleNamespace(clear_flag=asked.append)
        builder = SimpleNamespace(create_builder_config=lambda: config)
        monkeypatch.setattr(trt, "parse", lambda *words: asked.append(words) or (builder, "network", "parser"))
        monkeypatch.setattr(trt, "decompose_attention", lambda *words: asked.append(words))
        monkeypatch.setattr(trt, "serialize", lambda *words: asked.append(words[2:]) or b"engine")
        monkeypatch.setattr(trt, "load", lambda backend: SimpleNamespace(BuilderFlag=SimpleNamespace(TF32="no TF32")))
        monkeypatch.setattr(build_module, "set_target", lambda *words: asked.append((*words[::2],)))
        monkeypatch.setattr(build_module, "_add_profile", lambda *words: asked.append(words[1:]) or {"x": [1]})
        monkeypatch.setattr(build_module, "_timing_cache", lambda *words: contextlib.nullcontext())
        monkeypatch.setattr(build_module, "phases", lambda title: contextlib.nullcontext(title))
        monkeypatch.setattr(build_module, "time", SimpleNamespace(perf_counter=iter([10, 12.34]).__next__))
        return asked

    @pytest.mark.parametrize("graph", [VISION, DECODER])
    @pytest.mark.parametrize(("kind", "takes"), [("none", False), ("aot", True), ("aot", False)])
    def test_it_is_parsed_built_and_described(self, made, asked, graph, kind, takes, tmp_path, monkeypatch, capsys) -> None:
        monkeypatch.setattr(build_module, "has_plugin_layer", lambda *words: takes)
        goal = tmp_path / "new" / "llm" / "engine"
        entry = build_module._build_graph(made, graph, BuildOptions("tensorrt"), "sm89", PluginChoice(kind), goal)
        assert goal.read_bytes() == b"engine"
        assert entry == {
            "onnx_sha256": made.sha256(graph), "size": 6, "seconds": 2.3, "inputs": {"x": [1]}, "plugin": kind if takes else "none",
        }  # fmt: skip
        assert asked == [
            ("tensorrt", made.model(graph), kind == "aot"), ("tensorrt", "network"), "no TF32", ("tensorrt", "sm89"),
            ("network", self.config, 64), ("network", self.config, f"building {graph} for sm89 with tensorrt"),
        ]  # fmt: skip
        plain = kind == "aot" and not takes and graph == VISION
        assert ("is built as plain nodes, the plugin does not cover it" in capsys.readouterr().err) is plain


class Network:
    """inputs: {name: (shape, names of its dimensions)}."""

    def __init__(self, **inputs: tuple[tuple[int, ...], dict[int, str]]) -> None:
        self.inputs, self.num_inputs = list(inputs.items()), len(inputs)

    def get_input(self, index: int) -> SimpleNamespace:
        name, (shape, names) = self.inputs[index]
        return SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda axis: names.get(axis, ""))


@pytest.mark.parametrize(("context", "half"), [(1, 1), (2, 1), (5, 2), (64, 32)])
def test_kernels_are_tuned_for_one_position_at_half_the_context(context: int, half: int) -> None:
    shapes, added = {}, []
    profile = SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}))
    network = Network(
        scalar=((), {}), static=((2, 0), {0: "B"}), x=((1, -1, 8), {1: "S"}), attention_mask=((1, -1), {1: "T"}), y=((-1,), {})
    )
    config = SimpleNamespace(add_optimization_profile=added.append)
    builder = SimpleNamespace(create_optimization_profile=lambda: profile)
    assert build_module._add_profile(builder, network, config, context) == {
        "scalar": [], "static": [2, 0], "x": [1, "S", 8], "attention_mask": [1, "T"], "y": ["y.0"],
    }  # fmt: skip
    assert added == [profile]
    assert shapes == {
        "x": ([1, 1, 8], [1, 1, 8], [1, context, 8]), "attention_mask": ([1, 1], [1, half], [1, context]), "y": ([1], [1], [context]),
    }  # fmt: skip


def test_a_graph_of_fixed_shapes_has_no_profile() -> None:
    builder = SimpleNamespace(create_optimization_profile=lambda: None)
    assert build_module._add_profile(builder, Network(x=((2, 3), {})), None, None) == {"x": [2, 3]}


def test_a_timing_cache_that_can_not_be_written_is_logged(
    machine, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    config = SimpleNamespace(
        create_timing_cache=bytes,
        set_timing_cache=lambda *_: None,
        get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"t"),
    )
    with build_module._timing_cache("tensorrt", config):
        pass
    assert "timing cache" in capsys.readouterr().err


def test_a_kept_engine_is_linked_or_where_that_can_not_be_copied(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"an engine")
    for name in ("one", "two"):
        build_module._link(source, tmp_path / "a" / "b" / name)
    assert (tmp_path / "a/b/two").stat().st_ino == source.stat().st_ino

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(build_module.os, "link", no_links)
    build_module._link(source, tmp_path / "a" / "c" / "three")
    copy = tmp_path / "a/c/three"
    assert copy.read_bytes() == b"an engine" and copy.stat().st_ino != source.stat().st_ino


@pytest.mark.parametrize("wrong", [{"size": "9"}, {"onnx_sha256": None}, {"seconds": None}, {"inputs": []}], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_one_wrong_entry_of_two_spoils_a_record(wrong: dict, first: bool) -> None:
    good = {"onnx_sha256": "0", "size": 9, "seconds": 1.5, "inputs": {}}
    entries = [good | wrong, good] if first else [good, good | wrong]
    record = {"backend": "tensorrt", "version": "1", "target": "any", "graphs": dict(zip("ab", entries, strict=True))}
    assert not trt_records._is_record(record)
    assert trt_records._is_record(record | {"graphs": {"a": good, "b": good}}) and trt_records._is_record(record | {"graphs": {}})
    assert not trt_records._is_record(record | {"graphs": {}, "version": 1})


def test_on_a_machine_without_a_gpu_any_engine_is_found(made: Bundle, machine: list, monkeypatch) -> None:
    entry = {"onnx_sha256": made.sha256(VISION), "size": 9, "seconds": 1.5, "inputs": {}}
    record = {"backend": "tensorrt", "version": "10.3.0", "target": "sm87", "graphs": {VISION: entry}}
    monkeypatch.setattr(trt_records, "_size", lambda file: 9)
    monkeypatch.setattr(trt_records, "_records", lambda bundle, backend: iter([(Path("e"), record)]))
    with pytest.raises(EngineError, match=naming("sm87", "Test GPU (sm89)")):
        find_engine(made, "tensorrt", VISION)
    machine.append(cuda.Gpu("Orin", (8, 7), 2**34))
    with pytest.raises(EngineError, match=naming("sm87", "Test GPU (sm89)")):  # the first one runs what is loaded
        find_engine(made, "tensorrt", VISION)
    machine.clear()
    assert find_engine(made, "tensorrt", VISION) == Path("e/vision.engine")


def test_a_file_that_is_not_there_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"four")
    assert (trt_records._size(tmp_path / "one"), trt_records._size(tmp_path / "none")) == (4, None)
