"""The compression plugin in engine builds, as far as a machine without the enterprise TensorRT can show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from refusal import naming
from trt_bundle import make_bundle

from plugins.op import DOMAIN, NAME
from plugins.tensorrt import LIBRARY as LIBRARY_FILE
from runtime.bundle import DECODER, VISION
from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine import trt_build as build_module
from runtime.engine.trt_build import BuildOptions, PluginChoice, build
from runtime.engine.trt_records import find_engine, plugin_library

needs_rtx = pytest.mark.skipif(not facade.installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")


def test_an_export_carries_compression_as_one_replaceable_call(bundle):
    model = onnx.load(str(bundle.model(VISION)))
    calls = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]
    assert len(calls) == len(model.functions) == 1
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in calls[0].attribute}
    assert attributes["plugin_namespace"] == DOMAIN.encode() and attributes["plugin_version"] == b"1"
    assert not any(node.name.startswith("compress/nsp") for node in model.graph.node)
    assert any(report.name == "fuse_gridpool" and report.rewrites == 1 for report in bundle.manifest.report)


def test_older_parsers_get_the_call_without_its_body(bundle):
    without_choice = SimpleNamespace()
    bare = onnx.load_model_from_string(facade._prefer_plugin(without_choice, None, bundle.model(VISION)))
    exported = onnx.load(str(bundle.model(VISION)), load_external_data=False)
    assert not bare.functions and len(exported.functions) == 1
    assert [node.name for node in bare.graph.node] == [node.name for node in exported.graph.node]
    assert facade._prefer_plugin(without_choice, None, bundle.model(DECODER)) is None


@pytest.mark.parametrize("has_flag", [True, False])
def test_the_parser_is_told_to_prefer_plugins_or_left_no_other_choice(bundle, has_flag):
    told = []
    flags = SimpleNamespace(ENABLE_PLUGIN_OVERRIDE="override") if has_flag else SimpleNamespace()
    parser = SimpleNamespace(set_flag=told.append)
    bare = facade._prefer_plugin(SimpleNamespace(OnnxParserFlag=flags), parser, bundle.model(VISION))
    assert (told, bare is None) == ((["override"], True) if has_flag else ([], False))


def test_a_plugin_is_refused_where_none_can_be(tmp_path):
    with pytest.raises(EngineError, match=r"--plugin aot .*--backend tensorrt;"):
        PluginChoice.parse("aot", "tensorrt-rtx")
    with pytest.raises(EngineError, match=naming(tmp_path / "absent.so")):
        PluginChoice.parse(str(tmp_path / "absent.so"), "tensorrt")
    assert PluginChoice.parse("none", "tensorrt-rtx") == PluginChoice()


def test_engines_with_another_library_are_other_engines(tmp_path):
    (tmp_path / "a.so").write_bytes(b"a")
    (tmp_path / "b.so").write_bytes(b"b")
    keys = {PluginChoice.parse(str(tmp_path / name), "tensorrt").key for name in ("a.so", "b.so")}
    assert len(keys | {PluginChoice().key, PluginChoice.parse("aot", "tensorrt").key}) == 4


@pytest.mark.parametrize(
    ("choice", "registered"),
    [
        (PluginChoice(), []),
        (PluginChoice("aot"), [("kernel", "tensorrt's module")]),
        (PluginChoice("library", Path("a.so")), [("library", "tensorrt's module", Path("a.so"))]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_was_chosen_is_registered_and_nothing_else(monkeypatch, choice, registered):
    seen = []
    monkeypatch.setattr(facade, "load", lambda backend: f"{backend}'s module")
    monkeypatch.setattr(build_module, "load_library", lambda *arguments: seen.append(("library", *arguments)))
    aot = SimpleNamespace(register=lambda *arguments: seen.append(("kernel", *arguments)))
    monkeypatch.setitem(sys.modules, "plugins.tensorrt.aot", aot)
    choice.register("tensorrt")
    assert seen == registered


def test_the_library_lies_beside_the_engines_that_need_it(tmp_path, monkeypatch):
    """On stand-ins for a GPU and for TensorRT."""
    library = tmp_path / "own-name.so"
    library.write_bytes(b"a library")
    events = []

    def build_graph(bundle, graph, options, target, plugin, goal):
        events.append((graph, plugin.library))
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_bytes(graph.encode())
        return {"onnx_sha256": bundle.sha256(graph), "size": len(graph), "seconds": 1.5, "inputs": {}, "plugin": plugin.kind}

    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Orin", (8, 7), 8 << 30),))
    monkeypatch.setattr(facade, "load", lambda backend: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(PluginChoice, "register", lambda plugin, backend: events.append(backend))
    monkeypatch.setattr(build_module, "_build_graph", build_graph)
    bundle = make_bundle(tmp_path / "bundle")
    options = BuildOptions(backend="tensorrt", plugin=str(library))
    built = build(bundle, options)
    directory = bundle.path / "engines" / "tensorrt-sm87-fp32"
    assert events == ["tensorrt", (VISION, library), (DECODER, library)]
    assert (directory / LIBRARY_FILE).read_bytes() == b"a library"
    assert [(one.graph, one.path, one.size, one.seconds, one.reused) for one in built] == [
        (VISION, directory / "vision.engine", 6, 1.5, False),
        (DECODER, directory / "llm" / "decoder.engine", 11, 1.5, False),
    ]
    record = json.loads((directory / "build.json").read_text())
    assert (record["schema_version"], record["built_on"], record["version"], record["target"]) == (1, "Orin", "10.3.0", "sm87")
    assert plugin_library(built[1].path, DECODER) == directory / LIBRARY_FILE
    assert [one.reused for one in build(bundle, options)] == [True, True] and len(events) == 3
    library.write_bytes(b"another one")
    assert [one.reused for one in build(bundle, options)] == [False, False]
    assert (directory / LIBRARY_FILE).read_bytes() == b"another one"


@needs_rtx
def test_an_engine_that_needs_the_library_is_refused_without_it(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    (built, *_) = build(bundle, BuildOptions(graphs=(VISION,)))
    record = built.path.parent / "build.json"
    facts = json.loads(record.read_text())
    assert facts["plugin"] == "none" and facts["graphs"][VISION]["plugin"] == "none"
    assert plugin_library(built.path, VISION) is None

    facts["graphs"][VISION]["plugin"] = "library"
    record.write_text(json.dumps(facts))
    with pytest.raises(EngineError, match=f"{LIBRARY_FILE} .*: run `python -m runtime build"):
        find_engine(bundle, "tensorrt-rtx", VISION)
    library = built.path.parent / LIBRARY_FILE
    library.write_bytes(b"no library")
    assert find_engine(bundle, "tensorrt-rtx", VISION) == built.path
    assert plugin_library(built.path, VISION) == library
    assert isinstance(library, Path)
