"""Faults planted into the program, and what the campaign says of each: JSON {plant: [signatures of its findings]} on stdout.

    python tests/campaign_planted.py BUNDLE FOLDER

A process of its own, because the campaign forks and a test session has threads. BUNDLE stands for both bundles of the corpus.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.pop("PYTHONUNBUFFERED", None)

from benchmarks.campaign import server, stopped  # noqa: E402
from benchmarks.campaign.corpus import Corpus  # noqa: E402
from benchmarks.campaign.jobs import Batch, Job, Tokens  # noqa: E402
from benchmarks.campaign.kinds import kinds  # noqa: E402
from benchmarks.campaign.kinds.commands import fresh  # noqa: E402
from benchmarks.campaign.kinds.disk_full import DiskFull  # noqa: E402
from benchmarks.campaign.kinds.http import HttpKind  # noqa: E402
from benchmarks.campaign.kinds.inputs import MB, InputKind  # noqa: E402
from benchmarks.campaign.kinds.signals import Interrupts, Kills  # noqa: E402
from benchmarks.campaign.run import Run  # noqa: E402
from benchmarks.campaign.sandbox import Case  # noqa: E402
from benchmarks.campaign.verdicts import Fault  # noqa: E402

# Where each kind of files must get to: a division by zero there has to be found.
REACHED = {
    "media": "runtime.media.clip.sample_frames",
    "manifest": "runtime.bundle.schema.check",
    "tokenizer": "runtime.prompt.prompt.Prompt.__init__",
    "bundle-files": "runtime.bundle.Bundle.open",
    "checkpoint": "export.checkpoint.Checkpoint.config",
    "onnx": "runtime.engine.onnx.OnnxEngine.load",
    "batch-parts": "runtime.cluster.parts.Parts.done",
}


class Planted(InputKind):
    """Input n does what its fault is called."""

    name = "planted"
    seconds = 0.5
    memory = 50 * MB
    faults = ("fine", "crash", "hang", "traceback", "exit code", "message", "memory", "fine")

    def make(self, run: Run, index: int) -> Case:
        return Case(f"padding {self.faults[index]} padding".encode())

    def call(self, case: Case, folder: Path) -> int:
        if b"crash" in case.data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang" in case.data:
            while True:
                pass
        if b"traceback" in case.data:
            raise ValueError("planted")
        if b"memory" in case.data:
            bytearray(100 * MB)
        return 7 if b"exit code" in case.data else 2 if b"message" in case.data else 0


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("planted")


def files(run: Run) -> Iterator[tuple[str, list[str]]]:
    """Findings of the planted inputs, and of each kind of files with a fault where it has to get to."""
    Planted().slice(run, lambda index: index >= len(Planted.faults))
    yield "planted", list(run.state.findings)
    yield "planted inputs", [str(run.counts("planted")["inputs"])]
    smallest = (run.folder / "findings" / "planted-001" / "input").read_bytes()
    yield "minimised", [smallest.decode()]
    for name, place in REACHED.items():
        kind = kinds()[name]
        kind.prepare(run)
        with patch(place, broken):
            kind.slice(run, lambda index: index >= 2)
        yield name, [key for key in run.state.findings if key.startswith(f"{name}: ")]


def prepared(run: Run, kind: Any) -> Any:
    """A kind that stops commands, with the two quick jobs."""
    for job in (Tokens(), Batch()):
        kind.jobs[job.name], kind.changes[job.name], kind.seconds[job.name] = job, 1, 5.0
    return kind


def stop(run: Run, kind: Any, job: Job, **plan: Any) -> list[str]:
    fault, _ = kind.stopped(run, {"job": job.name, "mode": "change", "shares": [0.0] * 3, "again": True} | plan)
    return [fault.signature] if fault else []


@contextlib.contextmanager
def written_in_place(goal: Path) -> Iterator[Path]:
    """`atomic_file` without its temporary name."""
    goal.write_bytes(b"")
    yield goal


def commands(run: Run) -> Iterator[tuple[str, list[str]]]:
    """Commands that lose what was there, write a row twice or not at all, or do not end well on Ctrl-C."""
    from runtime.cluster.parts import Parts

    tokens, batch, write, stopped.AFTER_SIGNAL = Tokens(), Batch(), Parts.write, 2.0
    kills, interrupts, disk = prepared(run, Kills()), prepared(run, Interrupts()), DiskFull()
    prepared(run, disk)
    yield "kill", stop(run, kills, tokens)
    yield "interrupt", stop(run, interrupts, tokens)
    yield "kill of batch", stop(run, kills, batch)
    kills.changes["tokens"] = interrupts.changes["tokens"] = 3
    with patch("runtime.cli.tokens.atomic_file", written_in_place):
        yield "kill, written in place", stop(run, kills, tokens, shares=[0.5])
    with patch.object(Parts, "write", lambda self, rows: (write(self, rows), write(self, rows))[0]):
        yield "rows twice", stop(run, kills, batch, shares=[0.99])
    with patch.object(Parts, "write", lambda self, rows: write(self, rows[:1])):
        yield "rows lost", stop(run, kills, batch, shares=[0.99])

    def answering(code: Callable[[], int]) -> Callable[..., int]:
        def main(_: list[str]) -> int:
            try:
                time.sleep(5)
            except KeyboardInterrupt:
                return code()
            return 0

        return main

    for name, code in {"code": lambda: 1, "silent": lambda: 130, "deaf": lambda: time.sleep(20) or 130}.items():
        with patch("runtime.__main__.main", answering(code)):
            command = stopped.Command("runtime", [], fresh(run.work("interrupts") / "job"))
            ended, hit = command.stopped_after(signal.SIGINT, 0.3)
            fault = interrupts._judge(ended, hit, command.folder)
            yield f"interrupt, {name}", [fault.signature] if fault else []
    disk.room = {"tokens": (8192, 1 << 20)}
    plan = {"job": "tokens", "share": 0.05}
    fault, full = disk.stopped(run, plan)
    yield "disk full", [fault.signature] if fault else [f"full: {full}"]
    with patch("runtime.cli.tokens.atomic_file", written_in_place):
        fault, _ = disk.stopped(run, plan)
        yield "disk full, written in place", [fault.signature] if fault else []


class Asked(HttpKind):
    """Input n is the n-th of `texts` as a question."""

    name = "asked"
    clients = 1
    texts = ("fine ?",)

    def make(self, run: Run, index: int) -> Case:
        messages = [{"role": "user", "content": self.texts[index % len(self.texts)]}]
        return Case(json.dumps({"model": server.MODEL, "messages": messages, "max_tokens": 1}).encode(), ".chat")

    async def attempt(self, port: int, case: Case) -> Fault | None:
        response = await server.send(port, server.request("/v1/chat/completions", case.data))
        return Fault("answer", "status 500") if response.status == 500 else None


def requests(run: Run) -> Iterator[tuple[str, list[str]]]:
    """A server that fails, answers otherwise beside other requests, grows, keeps files open, or dies."""
    from runtime.llm.local import LocalLLM

    kind, answer, kept, wrong = Asked(), LocalLLM.answer, [], []
    run.minimising = 0.0
    kind.prepare(run)
    server.MEMORY = 100 * MB

    async def exclaimed(pieces: Any) -> Any:
        async for piece in pieces:
            yield replace(piece, text=piece.text + "!") if wrong else piece

    def with_fault(act: Callable[[], object]) -> Callable[..., Any]:
        def answered(llm: Any, chat: Any) -> Any:
            if "planted" in str(chat.messages):
                act()
            return exclaimed(answer(llm, chat))

        return answered

    acts: dict[str, Callable[[], object]] = {
        "status 500": broken,
        "otherwise": lambda: wrong.append(True),
        "grows": lambda: kept.append(bytes(os.urandom(1)) * (200 * MB)),
        "files": lambda: kept.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(20)),
        "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }
    sys.modules["benchmarks.campaign.kinds.http"].SETTLING = 1.0  # type: ignore[attr-defined]
    for name, act in {"fine": lambda: None, **acts}.items():
        before, start = set(run.state.findings), run.counts("asked")["next"]
        kind.texts = ("planted ?",)
        with patch.object(LocalLLM, "answer", with_fault(act)):
            kind.slice(run, lambda index, start=start: index >= start + 8)  # type: ignore[misc]
        yield name, sorted(set(run.state.findings) - before)


def main() -> int:
    bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    from export.demo import CHECKPOINT

    corpus = Corpus(folder / "corpus")
    corpus.small, corpus.demo, corpus.checkpoint = bundle, corpus.folder / "demo", CHECKPOINT
    corpus.folder.mkdir(parents=True)
    shutil.copytree(bundle, corpus.demo, ignore=shutil.ignore_patterns("engines"))
    run, found = Run(folder, 1, corpus, minimising=3.0), {}
    for part in (files, commands, requests):
        for name, signatures in part(run):
            print(f"{time.monotonic():.1f} {name}: {signatures}", file=sys.stderr)
            found[name] = signatures
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
