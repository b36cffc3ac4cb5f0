"""The campaign finds what is planted: each kind of finding, in each kind of input. A check that can't fail would pass silently."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.campaign import findings, minimise, mutate_boxes, mutate_bytes, mutate_json
from benchmarks.campaign.command import campaign
from benchmarks.campaign.kinds.http import LEAK, late_growth
from benchmarks.campaign.report import tables
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.server import Response, essence
from benchmarks.campaign.state import State
from benchmarks.campaign.verdicts import Ended, Fault, judge

ROOT = Path(__file__).resolve().parents[2]
FILES = ["media", "manifest", "tokenizer", "bundle-files", "checkpoint", "onnx", "batch-parts"]
KILLED = {
    "kill": [],
    "interrupt": [],
    "kill of batch": [],
    "kill, written in place": ["lost: a file of tokens that can't be read"],
    "rows twice": ["lost: a row is there twice"],
    "rows lost": ["lost: rows are missing"],
    "interrupt, code": ["exit code: 1 after Ctrl-C"],
    "interrupt, silent": ["message: 0 error lines after Ctrl-C"],
    "interrupt, deaf": ["hang: unknown"],
    "disk full": ["full: True"],
    "disk full, written in place": ["lost: a file of tokens that can't be read"],
}
SERVED = {
    "fine": [],
    "status 500": ["asked: traceback: ZeroDivisionError in runtime/server/chat.py"],
    "otherwise": ["asked: answer: good request"],
    "grows": ["asked: memory: server"],
    "files": ["asked: leak: files"],
    "dies": ["asked: crash: SIGKILL in unknown"],
}


@pytest.fixture(scope="module")
def found(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """{plant: signatures of what was found}, from tests/campaign_planted.py."""
    folder = tmp_path_factory.mktemp("campaign")
    bundle = shutil.copytree(bundle_path, folder / "bundle")  # other tests' bundle has no engines
    command = [sys.executable, str(ROOT / "tests" / "campaign_planted.py"), str(bundle), str(folder / "work")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_each_kind_of_finding_is_found_and_the_inputs_after_it_still_run(found: dict[str, list[str]]):
    expected = ["crash: SIGSEGV", "hang", "traceback: ValueError", "exit code: 7", "message: 0 error lines", "memory: peak"]
    assert [key.removeprefix("planted: ").partition(" in ")[0].removesuffix(": unknown") for key in found["planted"]] == expected
    assert found["planted inputs"] == ["8"]


@pytest.mark.slow
def test_a_finding_is_minimised(found: dict[str, list[str]]):
    assert found["minimised"] == ["crash"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_each_kind_of_file_reaches_the_code_that_reads_it(found: dict[str, list[str]], kind: str):
    assert [key.rpartition(" in ")[0] for key in found[kind]] == [f"{kind}: traceback: ZeroDivisionError"]


@pytest.mark.slow
@pytest.mark.parametrize("plant", KILLED)
def test_what_a_stopped_command_loses_is_found(found: dict[str, list[str]], plant: str):
    assert found[plant] == KILLED[plant]


@pytest.mark.slow
@pytest.mark.parametrize("plant", SERVED)
def test_what_a_server_does_wrong_is_found(found: dict[str, list[str]], plant: str):
    assert [re.sub(r"(\.py):\d+ .*", r"\1", key) for key in found[plant]] == SERVED[plant]


def test_a_good_end_is_no_finding_and_every_other_end_is_one():
    good = [(0, ""), (1, "x: error"), (2, "error: no such file\n"), (130, "error: interrupted\n")]
    assert [judge(Ended(code, "", text, 1.0)) for code, text in good] == [None] * 4
    bad = [(70, ""), (2, ""), (2, "error: a\nerror: b\n"), (-11, ""), (0, "Traceback (most recent call last):\n")]
    assert all(judge(Ended(code, "", text, 1.0)) for code, text in bad)
    assert judge(Ended(0, "", "thread 'main' panicked at src/lib.rs:3:5:\n", 1.0)).place == "panic in lib.rs:3"
    assert judge(Ended(0, "", "", 1.0, growth=11), memory=10).what == "memory"


def test_a_leak_goes_on_and_a_high_water_mark_does_not():
    mb = 1 << 20
    leak = [(160 + step) * mb for step in range(140)]
    measured = [144, 189, 201, 207, 213, 225, 233, 239, 253, 255, 263, 271, 273, 276, 277, 278, 279, 283]  # 15000 requests
    assert late_growth(leak) > LEAK > late_growth([value * mb for value in measured])
    assert late_growth([7]) == 0


def test_comments_of_a_slow_stream_change_nothing_and_a_cut_answer_differs():
    stream = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}\n\ndata: [DONE]\n\n'
    assert essence(Response(200, b": waiting\n\n" + stream)) == essence(Response(200, stream)) == [("a", None)]
    tokens = (2).to_bytes(8, "little") + b"{}" + bytes(range(4))
    answers = [tokens, stream[:20], b"", b"{", b'{"choices": [{}]}']
    assert len({str(essence(Response(200, body))) for body in answers}) == len(answers)
    assert essence(Response(200, tokens)) == ({}, bytes(range(4)))


def test_equal_faults_are_minimised_to_the_parts_that_matter():
    assert minimise.minimised(b"abcXdefYghi", lambda data: b"X" in data and b"Y" in data) == b"XY"
    value = {"a": [1, {"bad": 7, "c": 3}], "d": "long text"}
    small = minimise.minimised(json.dumps(value).encode(), lambda data: b'"bad"' in data)
    assert json.loads(small) == {"a": [{"bad": 7}]}


def test_every_input_follows_from_its_seed_and_index():
    data = bytes(range(256)) * 8
    for mutated in (lambda rng: mutate_bytes.mutated(rng, data), lambda rng: mutate_json.mutated(rng, {"a": [1, "b", None]})):
        made = [mutated(random.Random(seed)) for seed in range(200)]
        assert made == [mutated(random.Random(seed)) for seed in range(200)]
        assert len(set(made)) > 150


def test_boxes_are_found_below_their_parents_and_changed():
    leaf = (12).to_bytes(4, "big") + b"stco" + b"\0\0\0\1"
    file = (20).to_bytes(4, "big") + b"moov" + leaf + (8).to_bytes(4, "big") + b"mdat"
    assert [box.kind for box in mutate_boxes.boxes(file)] == [b"moov", b"stco", b"mdat"]
    assert sum(mutate_boxes.mutated(random.Random(seed), file) != file for seed in range(50)) > 40
    assert mutate_boxes.mutated(random.Random(0), b"no boxes") == b"no boxes"


class Counting:
    """A kind that finds something at index 3, once."""

    name, share = "counting", 1.0

    def lacking(self):
        return None

    def prepare(self, run):
        pass

    def make(self, run, index):
        return Case(str(index).encode(), ".txt")

    def slice(self, run, until):
        counts = run.counts(self.name)
        for _ in range(2):
            index = counts["next"]
            if index in (3, 5):
                run.found(self.name, index, Fault("answer", "planted", "detail"), self.make(run, index))
            counts["next"] += 1
            counts["inputs"] += 1


def test_a_campaign_goes_on_where_it_stopped_and_counts_equal_findings_once(tmp_path: Path):
    run, kind = Run(tmp_path, 7), Counting()
    while run.counts("counting")["next"] < 4:
        campaign(run, {"counting": kind}, 1e-9)
    run._lock.close()
    again = Run(tmp_path, 7)
    assert again.counts("counting")["next"] == 4
    while again.counts("counting")["next"] < 6:
        campaign(again, {"counting": kind}, 1e-9)
    assert list(again.state.findings.values()) == [{"id": "counting:3", "folder": "counting-001", "times": 2}]
    assert findings.read(tmp_path / "findings" / "counting-001" / "input.txt") == ("counting", b"3", ".txt")
    assert "| counting: answer: planted | 2 | counting:3 |" in tables(again.state)
    with pytest.raises(SystemExit, match="another campaign works in"):
        Run(tmp_path, 7)
    with pytest.raises(SystemExit, match="seed 7"):
        State(tmp_path, 8)


def test_a_kind_that_cannot_run_here_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    kind = Counting()
    kind.lacking = lambda: "no such thing"
    run = Run(tmp_path, 1)
    campaign(run, {"counting": kind}, 1.0)
    assert "counting is left out: no such thing" in capsys.readouterr().err
    assert "| counting | left out: no such thing | | |" in tables(run.state)
