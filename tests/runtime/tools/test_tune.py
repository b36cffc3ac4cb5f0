"""What `tune` measures and records, and when `--backend auto` believes the record."""

from __future__ import annotations

import json

import pytest
from refusal import refused

import runtime.engine
from runtime import tuning
from runtime.__main__ import main
from runtime.bundle import DECODER, VISION
from runtime.engine import EngineOptions, open_engine
from runtime.errors import EngineError
from runtime.tools import tune
from runtime.tools.tune import Measured, choose
from runtime.tuning import Choice


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(backend: str, threads: int, *seconds: float) -> Measured:
    return Measured("vision", backend, threads, *(seconds or (None, None)), "" if seconds else "broken")


class TestChoice:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([row("onnx", 0, 1.0, 0.9), row("openvino", 0, 0.8, 0.7)], Choice("openvino", 0)),
            ([row("onnx", 0, 1.0, 0.9), row("openvino", 0, 0.95, 0.5)], Choice("onnx", 0)),
            ([row("onnx", 0, 1.0, 0.9), row("onnx", 2, 0.5, 0.5), row("openvino", 0, 0.6, 0.1)], Choice("onnx", 2)),
            ([row("onnx", 0), row("openvino", 1, 3.0, 3.0)], Choice("openvino", 1)),
        ],
        ids=["faster", "within the spread", "threads", "only one runs"],
    )
    def test_the_fastest_is_chosen_where_noise_does_not_explain_it(self, rows, expected):
        assert choose(rows) == expected

    def test_where_nothing_runs_it_says_why(self):
        with pytest.raises(EngineError, match="no backend could run: onnx: broken"):
            choose([row("onnx", 0)])


class TestRecord:
    def test_auto_takes_what_was_measured_half_by_half(self, bundle):
        tuning.write(bundle, {"vision": Choice("onnx", 1), "llm": Choice("openvino", 1)}, [])
        pytest.importorskip("openvino")
        assert open_engine(bundle, VISION).backend == "onnx"
        assert open_engine(bundle, VISION).session.get_session_options().intra_op_num_threads == 1
        assert open_engine(bundle, DECODER).backend == "openvino"

    def test_nothing_measured_nothing_guessed(self, bundle):
        assert tuning.chosen(bundle, VISION) is None
        assert open_engine(bundle, VISION).backend == "onnx"

    def test_threads_that_are_asked_for_stay(self, bundle):
        tuning.write(bundle, {"vision": Choice("onnx", 1)}, [])
        engine = open_engine(bundle, VISION, options=EngineOptions(threads=2))
        assert engine.session.get_session_options().intra_op_num_threads == 2

    @pytest.mark.parametrize("what", ["machine", "release", "spoilt", "backend"])
    def test_what_no_longer_holds_is_not_believed(self, bundle, monkeypatch, what):
        file = tuning.write(bundle, {"vision": Choice("openvino", 1)}, [])
        if what == "machine":
            monkeypatch.setattr(tuning, "machine", lambda: {"cpu": "another", "cores": 2, "system": ""})
        elif what == "release":
            monkeypatch.setattr(tuning, "release", lambda backend: "0.1")
        elif what == "spoilt":
            file.write_text("{")
        else:  # uninstalled since
            engine = runtime.engine.backend_class("openvino")
            monkeypatch.setattr(engine, "unavailable", classmethod(lambda cls, device: "not installed"))
        assert open_engine(bundle, VISION).backend == "onnx"

    @pytest.mark.parametrize(
        ("measured", "unavailable", "order", "threads"),
        [
            (Choice("openvino", 3), None, ["openvino", "onnx"], 3),
            (Choice("onnx", 2), None, ["onnx"], 2),
            (Choice("openvino", 3), "not installed", ["onnx"], 0),
            (Choice("a backend of another release", 3), None, ["onnx"], 0),
            (None, None, ["onnx"], 0),
        ],
    )
    def test_its_threads_are_those_of_its_backend(self, monkeypatch, measured, unavailable, order, threads):
        monkeypatch.setattr(tuning, "chosen", lambda bundle, graph: measured)
        for name in ("onnx", "openvino"):
            engine = runtime.engine.backend_class(name)
            monkeypatch.setattr(engine, "unavailable", classmethod(lambda cls, device: unavailable))
        assert runtime.engine._order(None, VISION, EngineOptions("cpu")) == (order, EngineOptions("cpu", threads))
        assert runtime.engine._order(None, VISION, EngineOptions("cpu", 7)) == (order, EngineOptions("cpu", 7))

    @pytest.mark.parametrize(
        ("options", "order"),
        [
            (EngineOptions("cuda"), ["tensorrt", "tensorrt-rtx", "onnx"]),
            (EngineOptions("cpu", bf16=True), ["openvino"]),
            (EngineOptions("gpu.1"), ["openvino"]),
            (EngineOptions("npu", 2), ["openvino"]),
        ],
    )
    def test_other_devices_have_an_order_of_their_own(self, monkeypatch, options, order):
        monkeypatch.setattr(tuning, "chosen", lambda bundle, graph: pytest.fail("it is about the CPU"))
        assert runtime.engine._order(None, VISION, options) == (order, options)

    def test_a_record_is_of_one_content(self, bundle, split_bundle):
        assert tuning.file_of(bundle) != tuning.file_of(split_bundle)


class TestCommand:
    @pytest.mark.parametrize("which", ["bundle", "split_bundle"])
    def test_it_measures_every_half_and_writes_the_record(self, request, which, monkeypatch, capsys):
        target = request.getfixturevalue(which)
        monkeypatch.setattr(tune, "candidates", lambda: [Choice("onnx", 0), Choice("onnx", 1), Choice("tensorrt", 0)])
        assert main(["tune", str(target.path), "--rounds", "1", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        halves = {"vision", "llm"} if which == "bundle" else {"vision"}
        assert set(report["choices"]) == halves
        rows = [entry for entry in report["measured"] if entry["backend"] == "onnx"]
        assert len(rows) == 2 * len(halves) and all(0 < entry["fastest"] <= entry["median"] for entry in rows)
        assert all(entry["note"] and entry["median"] is None for entry in report["measured"] if entry["backend"] == "tensorrt")
        for half in halves:
            assert tuning.chosen(target, half) == Choice(**report["choices"][half])

    def test_candidates_are_what_runs_here_the_default_first(self, monkeypatch):
        monkeypatch.setattr(tuning, "machine", lambda: {"cores": 6})
        found = tune.candidates()
        assert found[0] == tune.DEFAULT
        assert {choice.threads for choice in found} == {0, 1, 2, 4}
        assert "tensorrt" not in {choice.backend for choice in found}

    def test_rounds_must_be_some(self, bundle, capsys):
        assert "rounds is 0, expected at least 1" in refused(capsys, main, "tune", bundle.path, "--rounds", "0")
