"""What a round of each component runs, on stand-ins, and what is told of a whole bundle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of
from refusal import naming

from runtime.bundle.manifest import FileEntry
from runtime.core.errors import EngineError
from runtime.engine import tuning
from runtime.engine.tuning import Choice
from runtime.tools import tune
from runtime.tools.tune import Measured

CLIP = np.arange(3 * 2, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still but for what is added to it."""
    now = [100.0]
    monkeypatch.setattr(tune.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_are_those_that_a_run_takes(clock):
    assert tune._timed(lambda: clock.__setitem__(0, clock[0] + 2.5)) == 2.5


class TestVision:
    @pytest.fixture
    def bundle(self, monkeypatch):
        monkeypatch.setattr(tune.reference, "clip", lambda bundle: CLIP if bundle == "bundle" else None)
        return "bundle"

    def test_a_round_is_one_frame_and_the_features_of_a_clip(self, monkeypatch, clock, bundle):
        """Encoding takes a second a frame, compressing ten."""
        encoded, compressed, closed = [], [], []

        class Engine:
            pixel_values = SimpleNamespace(name="frames", dtype=np.dtype(np.float16))

            def encode(self, frames):
                encoded.append(frames)
                clock[0] += len(frames)
                return frames[0] + 10

            def compress(self, features):
                compressed.append(features)
                clock[0] += 10

            def close(self):
                closed.append(True)

        asked = ("bundle", "onnx", "options")
        monkeypatch.setattr(tune, "open_vision", lambda *arguments: Engine() if arguments == asked else None)
        with pytest.raises(EngineError, match="stopped"), tune._vision(bundle, "onnx", "options") as run:
            assert run() == 11
            raise EngineError("stopped")
        assert closed == [True] and len(encoded) == 2 and len(compressed) == 1
        for frames in encoded:
            assert frames.dtype == np.float16
            np.testing.assert_array_equal(frames, CLIP[:1])
        np.testing.assert_array_equal(compressed[0], [[10, 11]] * 3)


@pytest.mark.parametrize(
    ("files", "components"), [(["vision.onnx", "llm/decoder.onnx"], ["vision", "llm"]), (["vision.onnx"], ["vision"]), ([], [])]
)
def test_every_component_is_measured_and_its_choice_written(monkeypatch, files, components):
    written = []

    def write(bundle, choices, measured):
        written.append((bundle, choices, measured))
        return Path("record.json")

    def measure(bundle, component, candidate, rounds):
        seconds = 1.0 + candidate.threads - 2 * (component == "llm") * candidate.threads
        return Measured(component, candidate.backend, candidate.threads, seconds * rounds, seconds)

    monkeypatch.setattr(tuning, "write", write)
    monkeypatch.setattr(tuning, "machine", lambda: {"cores": 2})
    monkeypatch.setattr(tune, "candidates", lambda: [Choice("onnx", 0), Choice("onnx", 0.25)])
    monkeypatch.setattr(tune, "_measure", measure)
    bundle = bundle_of(*files)
    report = tune.tune(bundle, 1)
    best = {"vision": Choice("onnx", 0), "llm": Choice("onnx", 0.25)}
    assert report.choices == {name: best[name] for name in components}
    assert [(row.half, row.threads) for row in report.measured] == [(name, threads) for name in components for threads in (0, 0.25)]
    ((of, choices, rows),) = written
    assert of is bundle and choices == report.choices and [row["half"] for row in rows] == [row.half for row in report.measured]
    assert (report.file, report.machine) == (Path("record.json"), {"cores": 2})
    if files:
        assert tune.tune(bundle).measured[0].median == 3  # rounds, by default


def test_a_candidate_that_is_as_fast_as_the_default_changes_nothing():
    rows = [Measured("llm", "onnx", 2, 1.0, 0.5), Measured("llm", "onnx", 0, 2.0, 1.0), Measured("llm", "openvino", 0, 1.5, 0.1)]
    assert tune.choose(rows) == Choice("onnx", 0)  # the best median is the default's fastest
    assert tune.choose([rows[0], rows[2]]) == Choice("onnx", 2)  # there is no default's


def test_the_report_is_a_table_with_seconds_flush_right():
    rows = (
        Measured("vision", "onnx", 0, 10.0, 9.5),
        Measured("vision", "openvino", 2, 1.0, 0.25),
        Measured("llm", "openvino", 2, None, None, "broken"),
    )
    choices = {"vision": Choice("openvino", 2), "llm": Choice("onnx", 0)}
    report = tune.TuneReport(choices, rows, Path("record.json"), {"cpu": "A CPU", "cores": 6})
    assert tune.text(report).splitlines() == [
        "A CPU, 6 cores",
        "component  backend   threads  median s  fastest s",
        "─────────  ────────  ───────  ────────  ─────────  ──────",
        "vision     onnx      default   10.0000     9.5000",
        "vision     openvino  2          1.0000     0.2500  chosen",
        "llm        openvino  2                             broken",
        "--backend auto reads record.json",
    ]


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (2000, [0, *(2**power for power in range(11))])]
)
def test_threads_are_powers_of_two_below_the_number_of_cores(monkeypatch, cores, threads):
    monkeypatch.setattr(tuning, "machine", lambda: {"cores": cores})
    monkeypatch.setattr(tune, "BACKENDS", ("onnx",))
    assert tune.candidates() == [Choice("onnx", count) for count in threads]


def test_where_nothing_runs_every_reason_is_told():
    rows = [Measured("llm", name, 0, None, None, note) for name, note in (("onnx", "no room"), ("openvino", "no file"))]
    with pytest.raises(EngineError, match=naming("onnx: no room", "openvino: no file")):
        tune.choose(rows)


class TestRecord:
    @pytest.fixture
    def bundle(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(tuning, "machine", lambda: {"cpu": "a"})
        monkeypatch.setattr(tuning, "release", lambda backend: f"1.0 of {backend}")
        return self.of("vision.onnx", "llm/decoder.onnx")

    @staticmethod
    def of(*files, split=False, digest="x"):
        names = (*files, *(["vision.encoder.onnx"] if split else []))
        return bundle_of(files={name: FileEntry(1, f"{digest} {name}") for name in names})

    def test_what_is_written_is_what_is_chosen(self, bundle, tmp_path):
        choices = {"vision": Choice("onnx", 0), "llm": Choice("openvino", 3)}
        file = tuning.write(bundle, choices, [{"half": "llm"}])
        assert file.parent == tmp_path / "st-gridpool" / "tuning" and file.suffix == ".json"
        assert (
            tuning.chosen(bundle, "vision.encoder") == choices["vision"] and tuning.chosen(bundle, "llm/decoder") == choices["llm"]
        )
        record = tuning.json.loads(file.read_text())
        assert (record["bundle"], record["measured"], record["schema_version"]) == ("b", [{"half": "llm"}], 2)

    @pytest.mark.parametrize(
        ("old", "new"), [('"cpu": "a"', '"cpu": "b"'), ('"1.0 of onnx"', '"1.1 of onnx"'), ('"threads": 2', '"threads": -1'),
                         ('"threads": 2', '"threads": "two"'), ('"vision": {', '"sound": {'), ('"components"', '"parts"')],
    )  # fmt: skip
    def test_what_does_not_hold_any_more_is_none(self, bundle, old, new):
        file = tuning.write(bundle, {"vision": Choice("onnx", 2)}, [])
        assert tuning.chosen(bundle, "vision") == Choice("onnx", 2)
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        assert tuning.chosen(bundle, "vision") is None

    def test_a_record_is_of_the_graphs_that_are_there_and_of_the_machine(self, bundle, monkeypatch):
        others = [self.of("vision.onnx"), self.of("llm/decoder.onnx"), self.of(*bundle.manifest.files, split=True)]
        others.append(self.of(*bundle.manifest.files, digest="y"))
        files = {tuning.file_of(one) for one in (bundle, *others)}
        monkeypatch.setattr(tuning, "machine", lambda: {"cpu": "b"})
        assert len(files | {tuning.file_of(bundle)}) == 6

    def test_without_a_cache_of_its_own_it_is_the_users(self, bundle, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        assert tuning.file_of(bundle).parent == tmp_path / "home" / ".cache" / "st-gridpool" / "tuning"

    def test_a_machine_is_its_cpu_its_cores_and_its_system(self, monkeypatch):
        monkeypatch.setattr(tuning, "cpu_model", lambda: "a cpu")
        monkeypatch.setattr(tuning, "cores", lambda: 3)
        monkeypatch.setattr(tuning.platform, "system", lambda: "Minix")
        monkeypatch.setattr(tuning.platform, "machine", lambda: "z80")
        assert tuning.machine() == {"cpu": "a cpu", "cores": 3, "system": "Minix z80"}
