"""Engines that a build.json written by hand lists: which one serves, and why another does not. None is real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming
from trt_bundle import make_bundle

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError
from runtime.engine import cuda, trt_build, trt_records
from runtime.engine import trt_api as trt
from runtime.engine.trt_records import dimension_names, find_engine


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "load", lambda backend: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Test GPU", (8, 9), 2**34),))


def write(bundle: Bundle, name: str, entry: dict | None = None, graph: str = VISION, **record: object) -> Path:
    directory = bundle.path / "engines" / name
    (directory / "llm").mkdir(parents=True)
    (directory / f"{graph}.engine").write_bytes(b"an engine")
    entry = {"onnx_sha256": bundle.sha256(graph), "size": 9, "seconds": 1.5, "inputs": {"x": [1, "S"]}} | (entry or {})
    values = {"schema_version": 1, "backend": "tensorrt", "version": "10.3.0", "target": "sm89", "graphs": {graph: entry}}
    (directory / "build.json").write_text(json.dumps(values | record))
    return directory / f"{graph}.engine"


@pytest.mark.parametrize("graph", [VISION, DECODER])
def test_one_that_serves_is_found_with_what_stands_beside_it(bundle: Bundle, graph: str) -> None:
    file = write(bundle, "tensorrt-sm89-fp32", graph=graph)
    assert find_engine(bundle, "tensorrt", graph) == file
    assert dimension_names(file, graph) == {"x": [1, "S"]}
    assert trt_records.plugin_library(file, graph) is None


@pytest.mark.parametrize(
    ("entry", "record", "named"),
    [
        ({"onnx_sha256": "0" * 64}, {}, ("ONNX",)),
        ({"plugin": "library"}, {}, (trt_records.PLUGIN_LIBRARY, "missing")),
        ({}, {"version": "10.2.0"}, ("10.2.0", "10.3.0")),
        ({"size": 10}, {}, ("truncated",)),
        ({}, {"target": "sm87"}, ("sm87", "Test GPU (sm89)")),
    ],
)
def test_why_one_does_not_serve(bundle: Bundle, entry: dict, record: dict, named: tuple[str, ...]) -> None:
    file = write(bundle, "tensorrt-sm89-fp32", entry, **record)
    remedy = f"run `python -m runtime build {bundle.path} --backend tensorrt`"
    with pytest.raises(EngineError, match=naming(file, *named, remedy)):
        find_engine(bundle, "tensorrt", VISION)
    with pytest.raises(EngineError, match=naming(file.parent / "llm/decoder.engine", remedy)):
        find_engine(bundle, "tensorrt", DECODER)


def test_the_first_that_serves_is_taken_and_where_none_does_all_are_named(bundle: Bundle) -> None:
    old = write(bundle, "tensorrt-ampere-plus-fp32", version="10.2.0")
    other = write(bundle, "tensorrt-sm87-fp32", target="sm87")
    write(bundle, "tensorrt-rtx-any-fp32", backend="tensorrt-rtx", target="any")
    with pytest.raises(EngineError, match=naming(old, "10.2.0", other, "sm87")):
        find_engine(bundle, "tensorrt", VISION)
    serves = write(bundle, "tensorrt-sm89-fp32")
    assert find_engine(bundle, "tensorrt", VISION) == serves


def test_the_library_of_a_plugin_stands_beside_the_engine(bundle: Bundle) -> None:
    file = write(bundle, "tensorrt-sm89-fp32", {"plugin": "library"}, graph=DECODER)
    library = file.parents[1] / trt_records.PLUGIN_LIBRARY
    library.touch()
    assert find_engine(bundle, "tensorrt", DECODER) == file
    assert trt_records.plugin_library(file, DECODER) == library


@pytest.mark.parametrize("changed", ["version", "target", "backend", "size", "onnx_sha256", None])
def test_an_engine_is_kept_where_a_build_would_make_it_again(bundle: Bundle, changed: str | None) -> None:
    key = {"backend": "tensorrt", "version": "10.3.0", "target": "sm89"}
    entry = {changed: 10} if changed == "size" else {changed: "0" * 64} if changed == "onnx_sha256" else {}
    record = {changed: "another"} if changed in key else {}
    directory = write(bundle, "tensorrt-sm89-fp32", entry, **record).parent
    assert list(trt_records.reusable_engines(bundle, directory, key)) == ([] if changed else [VISION])


@pytest.mark.parametrize(
    ("asked", "built"), [((), [VISION, DECODER]), ((VISION,), [VISION]), ((DECODER, VISION, DECODER), [DECODER, VISION])]
)
def test_which_graphs_are_built(bundle: Bundle, asked: tuple[str, ...], built: list[str]) -> None:
    assert trt_build._chosen_graphs(bundle, asked) == built


def test_a_decoder_with_flash_attention_is_not_built(bundle: Bundle) -> None:
    flash = replace(bundle, manifest=replace(bundle.manifest, llm=replace(bundle.llm, attention="flash")))
    assert trt_build._chosen_graphs(flash, (VISION,)) == [VISION]
    with pytest.raises(EngineError, match=naming("flash", "--attention portable")):
        trt_build._chosen_graphs(flash, ())


@pytest.mark.parametrize(
    ("entry", "record"),
    [
        ({"size": "9"}, {}),
        ({"size": 9.0}, {}),
        ({"size": True}, {}),
        ({"onnx_sha256": None}, {}),
        ({"seconds": "1.5"}, {}),
        ({"seconds": True}, {}),
        ({"inputs": [1]}, {}),
        ({}, {"schema_version": 2}),
        ({}, {"backend": 1}),
        ({}, {"version": 10.3}),
        ({}, {"target": ["sm89"]}),
        ({}, {"graphs": [VISION]}),
        ({}, {"graphs": {VISION: None}}),
    ],
    ids=str,
)
def test_a_record_with_a_value_of_another_type_is_none(bundle: Bundle, entry: dict, record: dict) -> None:
    file = write(bundle, "tensorrt-sm89-fp32", entry, **record)
    assert trt_records.read_record(file.parent) is None
    with pytest.raises(EngineError, match=naming(bundle.path, "vision", "run `python -m runtime build")):
        find_engine(bundle, "tensorrt", VISION)


def test_a_build_that_took_whole_seconds_is_a_record_too(bundle: Bundle) -> None:
    file = write(bundle, "tensorrt-sm89-fp32", {"seconds": 2})
    assert trt_records.read_record(file.parent)["graphs"][VISION]["seconds"] == 2
