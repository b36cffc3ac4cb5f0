"""What counts as a finding, judged from how a command ended.

crash       it died of a signal that the campaign did not send
hang        it ran past its limit
traceback   a Python traceback or a Rust panic where a user can see it (a server: status 500, or one in its log)
exit code   one other than 0, 1, 2 or 130
message     exit code 2 without exactly one "error: …" line
memory      it grew by more than its bound
answer      an answer that differs from the answer alone
lost        a bundle, an engine or a row that is gone, damaged or there twice; a partial output that looks complete
leak        memory, files or connections that are not released when everything has ended
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHAT = ("crash", "hang", "traceback", "exit code", "message", "memory", "answer", "lost", "leak")
EXIT_CODES = (0, 1, 2, 130)

_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')
_EXCEPTION = re.compile(r"^(\w[\w.]*(?:Error|Exception|Interrupt|Exit|Warning|StopIteration)\b)", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    code: exit code, below 0 the signal; growth: bytes of peak memory over what it began with; hung: killed at its limit.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    growth: int = 0
    hung: bool = False


@dataclass(frozen=True)
class Fault:
    """what: one of WHAT; place: where, so that equal faults are recognised; detail: what a person wants to read."""

    what: str
    place: str
    detail: str = ""

    @property
    def signature(self) -> str:
        return f"{self.what}: {self.place}"


def judge(ended: Ended, memory: int = 1 << 62) -> Fault | None:
    """The fault of an undisturbed command, None for none; memory: bytes that it may grow by."""
    text = ended.stderr
    if ended.hung:
        return Fault("hang", _place(text), f"no end after {ended.seconds:.0f} s\n{text[-4000:]}")
    if ended.code < 0:
        return Fault("crash", f"{_signal(-ended.code)} in {_place(text)}", text[-4000:])
    if has_traceback(text):
        what = "memory" if "MemoryError" in text else "traceback"
        return Fault(what, f"{_exception(text)} in {_place(text)}", text[-4000:])
    if ended.code not in EXIT_CODES:
        return Fault("exit code", str(ended.code), text[-4000:])
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if ended.code == 2 and len(errors) != 1:
        return Fault("message", f"{len(errors)} error lines", text[-4000:])
    if ended.growth > memory:
        return Fault("memory", "peak", f"{ended.growth / 1e6:.0f} MB, allowed {memory / 1e6:.0f}")
    return None


def has_traceback(text: str) -> bool:
    return "Traceback (most recent call last)" in text or "panicked at" in text or "Exception ignored" in text


def judge_log(log: str) -> Fault | None:
    """The fault that a server's log shows."""
    return Fault("traceback", f"{_exception(log)} in {_place(log)}", log[-4000:]) if has_traceback(log) else None


def _place(text: str) -> str:
    """The innermost frame of this project in a traceback (last one last) or in faulthandler's dump (last one first)."""
    frames = [(path, line, name) for path, line, name in _FRAME.findall(text) if _ours(path)]
    if not frames:
        panic = re.search(r"panicked at ([^\s:]+:\d+)", text)
        return panic[1].rpartition("/")[2] if panic else "unknown"
    path, line, name = frames[0] if "(most recent call first)" in text else frames[-1]
    return f"{Path(path).relative_to(ROOT)}:{line} {name}"


def _ours(path: str) -> bool:
    return path.startswith((f"{ROOT}/runtime/", f"{ROOT}/export/", f"{ROOT}/plugins/"))


def _exception(text: str) -> str:
    found = _EXCEPTION.findall(text)
    return found[-1] if found else "panic" if "panicked at" in text else "exception"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
