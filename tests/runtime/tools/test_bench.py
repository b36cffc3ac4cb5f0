from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from runtime.bundle import Bundle
from runtime.core.errors import EngineError, PromptError, VideoError
from runtime.engine import EngineOptions
from runtime.tools import bench
from runtime.tools.bench import BenchOptions, BenchReport, Measured

QUICK = BenchOptions(rounds=3, new_tokens=4, engine=EngineOptions(threads=1))


def test_the_reference_input_needs_no_video_and_every_stage_has_a_row(bundle, capsys):
    start = time.perf_counter()
    report = bench.bench(bundle, QUICK)
    medians = {row.stage: row.median for row in report.rows}
    assert list(medians) == ["encode+compress", "prefill", "time to first token", "decode rate"]
    assert medians["time to first token"] >= max(medians["encode+compress"], medians["prefill"])
    assert report.load_seconds + QUICK.rounds * min(medians["encode+compress"], medians["prefill"]) < time.perf_counter() - start
    assert report.tokens["patch_tokens"] == 1296 and report.tokens["visual_tokens"] == 257 and report.tokens["new_tokens"] == 4
    assert report.tokens["prompt_tokens"] > 257
    assert report.peak_rss > 10_000_000
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("round") == 3 and "warm-up" in captured.err


def test_a_video_adds_decoding_and_preprocessing_to_the_time_to_first_token(bundle, clip):
    report = bench.bench(bundle, replace(QUICK, video=clip, rounds=1))
    seconds = {row.stage: row.median for row in report.rows}
    assert list(seconds)[:2] == ["decode", "preprocess"]
    parts = seconds["decode"] + seconds["preprocess"] + seconds["encode+compress"] + seconds["prefill"]
    assert seconds["time to first token"] == pytest.approx(parts)
    assert report.input == str(clip)


def test_p90_is_on_the_slow_side_of_times_and_of_rates():
    values = [float(n) for n in range(1, 12)]
    assert (bench._summary("prefill", values).median, bench._summary("prefill", values).p90) == (6, 10)
    assert (bench._summary("decode rate", values).median, bench._summary("decode rate", values).p90) == (6, 2)


def test_the_end_of_the_answer_does_not_shorten_the_decoding(bundle, monkeypatch):
    """The demo's answers are a word long; what is timed is the number of tokens that was asked for."""
    from runtime.llm.decoder import Conversation

    steps = []
    extend = Conversation.extend
    monkeypatch.setattr(Conversation, "extend", lambda self, e, *a: steps.append(e.shape[1]) or extend(self, e, *a))
    bench.bench(bundle, replace(QUICK, rounds=1, new_tokens=7))
    assert steps.count(1) == 2 * 7  # the warm-up and the round


def test_the_report_is_json_and_says_the_hardware(bundle):
    report = bench.bench(bundle, replace(QUICK, rounds=1))
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["hardware"]["cores"] >= 1 and values["hardware"]["cpu"] and values["hardware"]["threads"] == 1
    assert values["backends"] == {"vision": "onnx on cpu", "llm": "onnx on cpu"}
    shown = bench.text(report)
    assert values["hardware"]["cpu"] in shown and "tokens/s" in shown and "peak memory" in shown


@pytest.mark.parametrize(
    ("more", "machine"),
    [({}, "A CPU, 4 cores"), ({"memory": 64_000_000_000, "gpu": ["Orin"]}, "A CPU, 4 cores, 64.0 GB memory, Orin")],
)
def test_the_text_says_what_was_measured_on_which_machine(more, machine):
    report = BenchReport(
        bundle="ov",
        input="clip.mp4",
        rows=(Measured("prefill", "s", 0.5, 0.75), Measured("decode rate", "tokens/s", 40, 38.25)),
        load_seconds=1.5,
        peak_rss=2_000_000_000,
        tokens={"patch_tokens": 1296, "visual_tokens": 257},
        rounds=3,
        backends={"vision": "onnx on cpu"},
        hardware={"cpu": "A CPU", "cores": 4, "threads": 2} | more,
    )
    first, second, *rows, last = filter(None, bench.text(report).splitlines())
    assert first == "ov: clip.mp4, 1,296 patch tokens, 257 visual tokens"
    assert second == f"{machine}; threads: 2; vision onnx on cpu"
    assert [row.split()[-3:] for row in rows[-2:]] == [["0.5000", "0.7500", "s"], ["40.0", "38.2", "tokens/s"]]
    assert last == "engines loaded in 1.50 s, peak memory 2.0 GB"


def test_a_bundle_of_one_half_is_measured(bundle, selecting_bundle):
    vision = bench.bench(selecting_bundle, replace(QUICK, rounds=1))
    assert [row.stage for row in vision.rows] == ["encode+compress"]
    files = {name: entry for name, entry in bundle.manifest.files.items() if not name.startswith("vision")}
    llm = bench.bench(Bundle(bundle.path, replace(bundle.manifest, files=files)), replace(QUICK, rounds=1))
    assert [row.stage for row in llm.rows] == ["prefill", "decode rate"]


@pytest.mark.parametrize("field", ["rounds", "new_tokens"])
def test_nothing_to_measure_is_refused(field):
    assert getattr(BenchOptions(**{field: 1}), field) == 1
    with pytest.raises(EngineError, match=field):
        BenchOptions(**{field: 0})


def test_more_tokens_than_the_context_holds_are_refused_before_a_round(bundle):
    with pytest.raises(PromptError, match=str(bundle.max_context)):
        bench.bench(bundle, replace(QUICK, new_tokens=5000))


def test_a_missing_video_is_refused(bundle, tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        bench.bench(bundle, replace(QUICK, video=tmp_path / "none.mp4"))
