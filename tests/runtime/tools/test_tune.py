"""What `tune` measures and records, and when `--backend auto` believes the record."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming, refused

from runtime.__main__ import main
from runtime.bundle import DECODER, VISION
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, backend_class, open_engine, tuning
from runtime.engine.open import _order
from runtime.engine.tuning import Choice
from runtime.tools import tune
from runtime.tools.tune import Measured, choose


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
        with pytest.raises(EngineError, match=naming("onnx: broken")):
            choose([row("onnx", 0)])
        with pytest.raises(EngineError, match=r"^no backend could run: onnx: broken$"):  # once for all numbers of threads
            choose([row("onnx", 0), row("onnx", 1)])


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
            engine = backend_class("openvino")
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
            engine = backend_class(name)
            monkeypatch.setattr(engine, "unavailable", classmethod(lambda cls, device: unavailable))
        assert _order(None, VISION, EngineOptions("cpu")) == (order, EngineOptions("cpu", threads))
        assert _order(None, VISION, EngineOptions("cpu", 7)) == (order, EngineOptions("cpu", 7))

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
        assert _order(None, VISION, options) == (order, options)

    def test_a_record_is_of_one_content(self, bundle, split_bundle):
        assert tuning.file_of(bundle) != tuning.file_of(split_bundle)


class TestCommand:
    @pytest.mark.parametrize("which", ["bundle", "split_bundle"])
    def test_it_measures_every_half_and_writes_the_record(self, request, which, monkeypatch, capsys):
        target = request.getfixturevalue(which)
        monkeypatch.setattr(tune, "candidates", lambda: [Choice("onnx", 0), Choice("onnx", 1), Choice("tensorrt", 0)])
        assert main(["tune", str(target.path), "--rounds", "1", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        components = {"vision", "llm"} if which == "bundle" else {"vision"}
        assert set(report["choices"]) == components
        rows = [entry for entry in report["measured"] if entry["backend"] == "onnx"]
        assert len(rows) == 2 * len(components) and all(0 < entry["fastest"] <= entry["median"] for entry in rows)
        assert all(entry["note"] and entry["median"] is None for entry in report["measured"] if entry["backend"] == "tensorrt")
        for name in components:
            assert tuning.chosen(target, name) == Choice(**report["choices"][name])

    def test_candidates_are_what_runs_here_the_default_first(self, monkeypatch):
        monkeypatch.setattr(tuning, "machine", lambda: {"cores": 6})
        found = tune.candidates()
        assert found[0] == tune.DEFAULT
        assert {choice.threads for choice in found} == {0, 1, 2, 4}
        assert "tensorrt" not in {choice.backend for choice in found}

    def test_rounds_must_be_some(self, bundle, capsys):
        assert "rounds is 0, expected at least 1" in refused(capsys, main, "tune", bundle.path, "--rounds", "0")


class TestRelease:
    def test_a_release_is_that_of_whichever_package_is_installed(self, monkeypatch):
        def version(package: str) -> str:
            if package == "onnxruntime-gpu":
                return "1.2.3"
            raise tuning.metadata.PackageNotFoundError(package)

        monkeypatch.setattr(tuning.metadata, "version", version)
        assert [tuning.release(backend) for backend in ("onnx", "openvino", "tensorrt")] == ["1.2.3", None, None]

    def test_graphs_belong_to_a_half(self):
        components = {
            graph: tuning.component_name(graph) for graph in ("vision", "vision.encoder", "llm/decoder", "llm/decoder.batch")
        }
        assert components == {"vision": "vision", "vision.encoder": "vision", "llm/decoder": "llm", "llm/decoder.batch": "llm"}


class TestMeasuring:
    @pytest.fixture
    def rounds(self, monkeypatch) -> list[tuple]:
        """What is measured, on stand-ins: a warm-up of 9 s, then rounds of 3, 1 and 2 s of vision, ten times as long of the LLM."""
        opened: list[tuple] = []

        def measurer(name: str, factor: float):
            @contextlib.contextmanager
            def opener(bundle, backend, options):
                opened.append((name, bundle, backend, options))
                yield iter([9 * factor, 3 * factor, 1 * factor, 2 * factor]).__next__

            return opener

        monkeypatch.setattr(tune, "_vision", measurer("vision", 1))
        monkeypatch.setattr(tune, "_llm", measurer("llm", 10))
        return opened

    def test_each_half_is_measured_by_its_own_rounds_after_a_warm_up(self, rounds, capsys):
        vision = tune._measure("a bundle", "vision", Choice("onnx", 0), 3)
        llm = tune._measure("a bundle", "llm", Choice("openvino", 2), 3)
        assert vision == Measured("vision", "onnx", 0, 2, 1)
        assert llm == Measured("llm", "openvino", 2, 20, 10)
        assert rounds == [
            ("vision", "a bundle", "onnx", EngineOptions("cpu", 0)),
            ("llm", "a bundle", "openvino", EngineOptions("cpu", 2)),
        ]
        said = capsys.readouterr().err
        assert "vision on onnx, the default number of threads" in said and "llm on openvino, 2 threads" in said

    @pytest.mark.parametrize(
        ("tokens", "context", "prefill", "decode"),
        [  # where the chunk of the prefill begins and ends, and the decode steps
            (600, 4096, (188, 444), (632, 664)),  # 632 positions; 188 are on either side of the chunk of 256
            (601, 4096, (188, 444), (633, 665)),
            (100, 4096, (0, 132), (132, 164)),
            (600, 500, (106, 362), (468, 500)),  # what the context holds
            (600, 63, (0, 32), (32, 63)),
            (600, 20, (0, 10), (10, 20)),
        ],
    )
    def test_an_answer_is_the_chunk_in_the_middle_of_its_prompt_and_the_steps_behind_it(
        self, monkeypatch, tokens, context, prefill, decode
    ):
        runs: list[tuple[int, tuple[int, ...]]] = []

        class Conversation:
            length = 0

            def extend(self, rows):
                runs.append((self.length, rows.shape))
                self.length += rows.shape[1]

        closed, timed = [], iter([8.0, 5.0])
        engine = SimpleNamespace(close=lambda: closed.append(True))
        decoder = SimpleNamespace(max_context=context, engine=engine, conversation=Conversation, chunk=256)
        bundle = SimpleNamespace(manifest=SimpleNamespace(tokens_per_clip=tokens, hidden_size=6))
        monkeypatch.setattr(tune, "open_engine", lambda *arguments: arguments)
        monkeypatch.setattr(
            tune, "LocalDecoder", lambda *given: decoder if given[1] == (bundle, DECODER, "onnx", "options") else None
        )
        monkeypatch.setattr(tune, "_timed", lambda run: (run(), next(timed))[1])
        with tune._llm(bundle, "onnx", "options") as run:
            assert run() == pytest.approx(8 * decode[0] / (prefill[1] - prefill[0]) + 5)
            assert not closed
        assert closed == [True]
        assert runs == [(prefill[0], (1, prefill[1] - prefill[0], 6)), *((at, (1, 1, 6)) for at in range(*decode))]

    def test_the_report_is_a_line_a_candidate(self):
        measured = (row("onnx", 0, 1.0, 0.9), row("openvino", 2, 0.5, 0.25), row("openvino", 4))
        machine = {"cpu": "A CPU", "cores": 6}
        report = tune.TuneReport({"vision": Choice("openvino", 2)}, measured, Path("cache/record.json"), machine)
        first, header, *_, last = (lines := tune.text(report).splitlines())
        assert (first, last) == ("A CPU, 6 cores", "--backend auto reads cache/record.json")
        assert header.split("  ")[0] == "component" and "median s" in header and "fastest s" in header
        assert [line.split() for line in lines[-4:-1]] == [
            ["vision", "onnx", "default", "1.0000", "0.9000"],
            ["vision", "openvino", "2", "0.5000", "0.2500", "chosen"],
            ["vision", "openvino", "4", "broken"],
        ]
        assert report.as_dict()["file"] == "cache/record.json"

    def test_thread_counts_end_below_the_number_of_cores(self, monkeypatch):
        monkeypatch.setattr(tuning, "machine", lambda: {"cores": 4})
        monkeypatch.setattr(tune, "BACKENDS", ("onnx",))
        assert [choice.threads for choice in tune.candidates()] == [0, 1, 2]
