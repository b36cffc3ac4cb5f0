"""What is timed as which stage, on a clock that engines, decoder and resizing turn by known seconds."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.bundle import Bundle
from runtime.core.errors import BundleError, ContextError
from runtime.engine import EngineOptions
from runtime.tools import bench
from runtime.tools.bench import BenchOptions, BenchReport, Measured


def test_what_is_measured_where_nothing_is_said():
    assert asdict(BenchOptions()) == {
        "video": None, "rounds": 5, "new_tokens": 32, "backend": "auto",
        "engine": {"device": "auto", "threads": 0, "bf16": False},
    }  # fmt: skip


class Machine:
    """The stand-ins; now: its clock; log: what was opened, fed and chosen."""

    def __init__(self, monkeypatch):
        self.now, self.log, self.encodes = 100.0, [], iter([9.0, 1.0, 3.0, 2.0])
        pixel_values = SimpleNamespace(dtype=np.dtype(np.float16))
        self.engine = SimpleNamespace(backend="onnx", device="cpu", pixel_values=pixel_values)
        stand_in = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(bench, "time", stand_in)
        monkeypatch.setattr(bench, "VisionEncoder", SimpleNamespace(open=self.open_vision))
        monkeypatch.setattr(bench, "LocalDecoder", SimpleNamespace(open=self.open_decoder))
        monkeypatch.setattr(bench, "placed", lambda bundle, backend, options: self.placed(backend, options))
        monkeypatch.setattr(bench, "sample_frames", self.sample)
        monkeypatch.setattr(bench, "Prompt", lambda bundle: self)
        reference = SimpleNamespace(
            clip=lambda bundle: np.full(3, 5.0), llm=lambda bundle: SimpleNamespace(visual_tokens=np.zeros((6, 2)))
        )
        monkeypatch.setattr(bench, "reference", reference)
        monkeypatch.setattr(bench, "hardware", lambda *arguments: arguments)
        monkeypatch.setattr(bench, "_reset_peak", lambda: self.log.append("forgotten"))
        monkeypatch.setattr(bench, "_peak_rss", lambda: 77)
        self.preprocessor = SimpleNamespace(resize=self.resize, normalise=self.normalise)
        self.embeddings = np.eye(3)
        self.max_context = 20

    def placed(self, backend, options):
        self.log.append((backend, options))
        return EngineOptions("cpu", 2)

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def open_vision(self, *arguments):
        self.log.append(("vision", *arguments[1:]))
        self.spend(0.5)
        return SimpleNamespace(engine=self.engine, preprocessor=self.preprocessor, tokens=self.tokens)

    def open_decoder(self, *arguments):
        self.log.append(("decoder", *arguments[1:]))
        self.spend(0.25)
        return SimpleNamespace(engine=self.engine, max_context=self.max_context, conversation=lambda: self)

    def resize(self, frame):
        self.spend(0.5)
        return frame

    def normalise(self, frames, dtype):
        self.spend(0.25)
        return (frames + 1).astype(dtype)

    def sample(self, video, count, each):
        self.log.append(("video", video, count))
        for _ in range(count):
            self.spend(2)
            each(np.zeros(1))
        return SimpleNamespace(frames=np.full(3, 6.0))

    def tokens(self, pixels):
        assert pixels.dtype == np.float16, "a conversion is no part of the run"
        self.log.append(("pixels", pixels.tolist()))
        self.spend(next(self.encodes))
        return np.zeros((4, 2))

    def ids(self, question):
        assert question == "What happens in the video?"
        return [1, 2, 3]

    def embed(self, ids, visual):
        return np.zeros((1, len(ids) + len(visual), 3))

    def extend(self, embedded):
        self.log.append(("extend", embedded.shape[1]))
        self.spend(8 if embedded.shape[1] > 1 else 0.5)
        return np.array([0.0, 1.0, 0.0])


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return Machine(monkeypatch)


def bundle(*files: str) -> Bundle:
    manifest = SimpleNamespace(files=files, patch_tokens=9, tokens_per_clip=4, frames=2)
    return Bundle(Path("ov"), manifest)


def rows(report: BenchReport) -> dict[str, tuple[float, float]]:
    return {row.stage: (row.median, row.p90) for row in report.rows}


BOTH = ("vision.onnx", "llm/decoder.onnx")


def test_stages_of_the_reference_input_after_a_warm_up(machine, capsys):
    report = bench.bench(bundle(*BOTH), BenchOptions(rounds=3, new_tokens=5, backend="onnx", engine=EngineOptions("auto", 2, True)))
    options = EngineOptions("cpu", 2)
    assert machine.log[:4] == [
        "forgotten",
        ("onnx", EngineOptions("auto", 2, True)),
        ("vision", "onnx", options),
        ("decoder", "onnx", options),
    ]
    got = rows(report)  # the nine seconds of the warm-up don't count
    assert got["encode+compress"] == pytest.approx((2, 2.8)) and got["time to first token"] == pytest.approx((10, 10.8))
    assert (list(got)[1:], got["prefill"], got["decode rate"]) == (
        ["prefill", "time to first token", "decode rate"],
        (8, 8),
        (2, 2),
    )
    assert (report.load_seconds, report.peak_rss, report.rounds, report.bundle) == (0.75, 77, 3, "ov")
    assert report.tokens == {"patch_tokens": 9, "visual_tokens": 4, "prompt_tokens": 7, "new_tokens": 5}
    assert (report.input, report.hardware) == ("the bundle's reference input", ("cpu", 2))
    assert report.backends == {"vision": "onnx on cpu", "llm": "onnx on cpu"}
    assert [entry for entry in machine.log if entry[0] == "pixels"] == [("pixels", [5.0] * 3)] * 4
    assert machine.log.count(("extend", 1)) == 4 * 5 and machine.log.count(("extend", 7)) == 4
    said = capsys.readouterr().err
    assert "warm-up: 19.50 s" in said and "round 1 of 3: 11.50 s" in said and "round 3 of 3: 12.50 s" in said


def test_stages_of_a_video(machine):
    report = bench.bench(bundle(*BOTH), BenchOptions(video="a.mp4", rounds=1, new_tokens=1))
    got = {stage: median for stage, (median, _) in rows(report).items()}
    assert got == pytest.approx({
        "decode": 4, "preprocess": 1.25, "encode+compress": 1, "prefill": 8, "time to first token": 14.25, "decode rate": 2,
    })  # fmt: skip
    assert report.input == "a.mp4" and ("video", "a.mp4", 2) in machine.log and ("pixels", [7.0] * 3) in machine.log


@pytest.mark.parametrize(
    ("files", "stages", "tokens"),
    [
        (BOTH[:1], ["encode+compress"], {"patch_tokens": 9, "visual_tokens": 4}),
        (BOTH[1:], ["prefill", "decode rate"], {"prompt_tokens": 9, "new_tokens": 11}),  # 6 of the reference prompt
    ],
)
def test_one_half_alone(machine, files, stages, tokens):
    report = bench.bench(bundle(*files), BenchOptions(rounds=1, new_tokens=11))
    assert list(rows(report)) == stages and report.tokens == tokens
    assert len(report.backends) == 1


def test_a_context_may_be_filled_and_not_passed(machine):
    bench.bench(bundle(*BOTH), BenchOptions(rounds=1, new_tokens=13))
    with pytest.raises(ContextError, match=naming(21, 20)):
        bench.bench(bundle(*BOTH), BenchOptions(rounds=1, new_tokens=14))


def test_a_bundle_without_graphs_is_refused(machine):
    with pytest.raises(BundleError, match="ov has no graph"):
        bench.bench(bundle("vision.loop.onnx"))
    assert machine.log == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_machine_in_words(monkeypatch, device):
    from runtime.engine import cuda

    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(cuda, "gpus", lambda: (SimpleNamespace(name="Orin"),))
    facts = bench.hardware(device, 0)
    assert (facts["memory"], facts["threads"], facts.get("gpu")) == (
        4_096_000,
        "backend's choice",
        ["Orin"] if device == "cuda" else None,
    )
    assert facts["cores"] >= 1 and facts["cpu"] and facts["system"].count(" ") == 1 and facts["python"] == sys.version.split()[0]
    monkeypatch.setattr(os, "sysconf_names", {})
    assert "memory" not in bench.hardware("cpu", 3) and bench.hardware("cpu", 3)["threads"] == 3


def test_the_table_is_flush_right_where_there_are_numbers():
    report = BenchReport(
        "ov", "a.mp4", (Measured("prefill", "s", 0.5, 10.75), Measured("decode rate", "tokens/s", 40, 38.25)),
        1.5, 2_000_000, {"new_tokens": 32}, 3, {"llm": "onnx on cpu"}, {"cpu": "A", "cores": 4, "threads": 2},
    )  # fmt: skip
    assert bench.text(report).splitlines() == [
        "ov: a.mp4, 32 new tokens",
        "A, 4 cores; threads: 2; llm onnx on cpu",
        "",
        "median of 3  median      p90",
        "───────────  ──────  ───────  ────────",
        "prefill      0.5000  10.7500  s",
        "decode rate    40.0     38.2  tokens/s",
        "",
        "engines loaded in 1.50 s, peak memory 2.0 MB",
    ]


def test_peak_memory_is_the_kernel_s_and_else_what_the_process_was_told(monkeypatch):
    monkeypatch.setattr(
        bench.Path, "read_text", lambda path: {"/proc/self/status": "VmPeak:\t9 kB\nVmHWM:\t     70 kB\n"}[str(path)]
    )
    assert bench._peak_rss() == 71_680

    def no_proc(*_):
        raise OSError

    monkeypatch.setattr(resource, "getrusage", {resource.RUSAGE_SELF: SimpleNamespace(ru_maxrss=5)}.__getitem__)
    monkeypatch.setattr(bench.Path, "read_text", lambda path: "VmPeak: 9 kB\n")
    for read_text in (bench.Path.read_text, no_proc):
        monkeypatch.setattr(bench.Path, "read_text", read_text)
        for platform, peak in (("linux", 5120), ("darwin", 5)):  # the one counts KiB, the other bytes
            monkeypatch.setattr(bench.sys, "platform", platform)
            assert bench._peak_rss() == peak


def test_the_peak_of_before_is_forgotten_where_that_can_be(monkeypatch):
    written = []
    monkeypatch.setattr(bench.Path, "write_text", lambda path, text: written.append((str(path), text)))
    bench._reset_peak()
    assert written == [("/proc/self/clear_refs", "5")]

    def denied(*_):
        raise PermissionError

    monkeypatch.setattr(bench.Path, "write_text", denied)
    bench._reset_peak()
