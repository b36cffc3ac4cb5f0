"""Which of the engines that were really built is found, and why another is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trt_bundle import HERE, RTX, make_bundle, needs_rtx

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine.trt_build import BuildOptions, build
from runtime.engine.trt_records import find_engine


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "bundle")


@needs_rtx
class TestFindEngine:
    command = r"run `python -m runtime build .*bundle --backend tensorrt-rtx`"

    def test_what_was_built_is_found(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        built = build(bundle, RTX)
        monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))
        assert find_engine(bundle, "tensorrt-rtx", DECODER) == built[1].path

    def test_nothing_built(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match=rf"vision: {self.command}"):
            find_engine(bundle, "tensorrt-rtx", VISION)

    def test_a_graph_that_was_not_built(self, bundle: Bundle) -> None:
        build(bundle, BuildOptions(backend="tensorrt-rtx", graphs=(VISION,)))
        with pytest.raises(EngineError, match=rf"decoder\.engine .*: {self.command}"):
            find_engine(bundle, "tensorrt-rtx", DECODER)

    def test_another_onnx(self, bundle: Bundle) -> None:
        build(bundle, RTX)
        changed = make_bundle(bundle.path, seed=1)
        with pytest.raises(EngineError, match=rf"ONNX.*: {self.command}"):
            find_engine(changed, "tensorrt-rtx", VISION)

    def test_another_version(self, bundle: Bundle) -> None:
        record = build(bundle, RTX)[0].path.parent / "build.json"
        values = json.loads(record.read_text())
        record.write_text(json.dumps(values | {"version": "1.2.3.4"}))
        with pytest.raises(EngineError, match=rf"1\.2\.3\.4, .*: {self.command}"):
            find_engine(bundle, "tensorrt-rtx", VISION)
        assert not build(bundle, RTX)[0].reused

    def test_another_gpu(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        build(bundle, BuildOptions(backend="tensorrt-rtx", target="sm86,sm120", graphs=(VISION,)))
        monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))
        with pytest.raises(EngineError, match=rf"sm86,sm120, .*Test GPU \(sm89\): {self.command}"):
            find_engine(bundle, "tensorrt-rtx", VISION)
        build(bundle, BuildOptions(backend="tensorrt-rtx", graphs=(VISION,)))
        assert find_engine(bundle, "tensorrt-rtx", VISION).parent.name == "tensorrt-rtx-any-fp32"

    def test_a_truncated_engine_is_refused_and_built_again(self, bundle: Bundle) -> None:
        engine = build(bundle, RTX)[0].path
        engine.write_bytes(engine.read_bytes()[:-1])
        with pytest.raises(EngineError, match=rf"vision\.engine .*: {self.command}"):
            find_engine(bundle, "tensorrt-rtx", VISION)
        assert [built.reused for built in build(bundle, RTX)] == [False, True]

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 2, "graphs": {}}'])
    def test_an_unreadable_record_counts_as_none(self, bundle: Bundle, content: str) -> None:
        (build(bundle, RTX)[0].path.parent / "build.json").write_text(content)
        with pytest.raises(EngineError, match="has no tensorrt-rtx engine"):
            find_engine(bundle, "tensorrt-rtx", VISION)
        assert not build(bundle, RTX)[0].reused
