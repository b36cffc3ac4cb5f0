"""Which TensorRT engine of a bundle serves: C++ finds the one that Python finds, and refuses others in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cpp_build import probe
from trt_bundle import make_bundle

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.trt_records import dimension_names, find_engine, plugin_library

VERSION, GPU = "10.13.3.9", cuda.Gpu("Orin", (8, 7), 8 << 30)
LIBRARY = "libst_gridpool_plugin.so"
INPUTS = {VISION: {"pixel_values": [2, 3, 8, 8]}, DECODER: {"inputs_embeds": [1, "S", 16], "past": [1, 2, 64, 8]}}


def _built(bundle: Bundle, target: str, **changes: object) -> Path:
    """An engine directory as `build` leaves it, the engines four bytes each."""
    folder = bundle.path / "engines" / f"tensorrt-{target}-fp32"
    (folder / "llm").mkdir(parents=True)
    graphs = {}
    for graph in (VISION, DECODER):
        (folder / f"{graph}.engine").write_bytes(b"plan")
        graphs[graph] = {"onnx_sha256": bundle.sha256(graph), "size": 4, "seconds": 1.5, "plugin": "none", "inputs": INPUTS[graph]}
    record = {"schema_version": 1, "backend": "tensorrt", "version": VERSION, "target": target, "graphs": graphs} | changes
    (folder / "build.json").write_text(json.dumps(record))
    return folder


def _edit(folder: Path, graph: str, **changes: object) -> None:
    record = json.loads((folder / "build.json").read_text())
    record["graphs"][graph] |= changes
    (folder / "build.json").write_text(json.dumps(record))


def _with_library(folder: Path) -> None:
    _edit(folder, VISION, plugin="library")
    (folder / LIBRARY).write_bytes(b"ELF")


CASES: dict[str, Callable[[Bundle], object]] = {
    "nothing was built": lambda bundle: None,
    "it serves": lambda bundle: _built(bundle, "sm87"),
    "for the whole family": lambda bundle: _built(bundle, "ampere-plus"),
    "with its plugin": lambda bundle: _with_library(_built(bundle, "sm87")),
    "the plugin is gone": lambda bundle: _edit(_built(bundle, "sm87"), VISION, plugin="library"),
    "for another GPU": lambda bundle: _built(bundle, "sm90"),
    "the second serves": lambda bundle: (_built(bundle, "sm120"), _built(bundle, "sm87")),
    "none of two serves": lambda bundle: (_built(bundle, "sm120"), _built(bundle, "sm90")),
    "by another TensorRT": lambda bundle: _built(bundle, "sm87", version="10.3.0.26"),
    "from another graph": lambda bundle: _edit(_built(bundle, "sm87"), VISION, onnx_sha256="0" * 64),
    "one half alone": lambda bundle: _built(bundle, "sm87", graphs={}),
    "cut off": lambda bundle: (_built(bundle, "sm87") / f"{VISION}.engine").write_bytes(b"pla"),
    "the file is gone": lambda bundle: (_built(bundle, "sm87") / f"{VISION}.engine").unlink(),
    "no JSON": lambda bundle: (_built(bundle, "sm87") / "build.json").write_text("{"),
    "of a later format": lambda bundle: _built(bundle, "sm87", schema_version=2),
    "of the other TensorRT": lambda bundle: _built(bundle, "sm87", backend="tensorrt-rtx"),
}


@pytest.mark.parametrize("graph", [VISION, DECODER])
def test_the_engine_that_python_finds(graph: str, cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facade, "load", lambda backend: SimpleNamespace(__version__=VERSION))
    monkeypatch.setattr(cuda, "gpus", lambda: [GPU])
    made = make_bundle(tmp_path / "made")
    expected, lines = [], []
    for index, arrange in enumerate(CASES.values()):
        bundle = Bundle.open(shutil.copytree(made.path, tmp_path / str(index)))
        arrange(bundle)
        try:
            path = find_engine(bundle, "tensorrt", graph)
            library = plugin_library(path, graph)
            expected.append({"file": str(path), "plugin": str(library or ""), "inputs": dimension_names(path, graph)})
        except EngineError as error:
            expected.append({"error": str(error)})
        lines.append([str(bundle.path), graph, VERSION, GPU.name, *GPU.capability])
    for name, answer, want in zip(CASES, probe(cpp, "engine", lines), expected, strict=True):
        assert answer == want, name
    assert sum("error" in want for want in expected) == (12 if graph == VISION else 8)
