"""The same damaged clips and stills through the C++ runtime's decoder, in the probe that its tests use.

It answers a line at a time, so a signal or a silence belongs to the line that was asked.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.campaign.child import memory_of
from benchmarks.campaign.kinds.inputs import MB
from benchmarks.campaign.kinds.media import FRAMES, Media
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.verdicts import ROOT, Fault

PROBE = ROOT / "build" / "cpp" / "tests" / "gridpool-probe"
LIMIT = 30.0  # seconds for one line; the probe ends itself after 20
MEMORY = 1024 * MB


class CppMedia(Media):
    name = "cpp-media"
    share = 1.5

    def lacking(self) -> str | None:
        return None if PROBE.exists() else f"{PROBE.relative_to(ROOT)} is not built: make cpp"

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts, folder = run.counts(self.name), run.work(self.name)
        while not until(counts["next"]):
            with _Probe(folder) as probe:
                while not until(counts["next"]):
                    index = counts["next"]
                    case = self.make(run, index)
                    fault = probe.fault(case)
                    counts["next"], counts["inputs"] = index + 1, counts["inputs"] + 1
                    counts["refused"] += probe.refused
                    if fault:
                        run.report(self, index, fault)
                        break

    def replay(self, run: Run, case: Case) -> Fault | None:
        with _Probe(run.work(f"{self.name}-replay")) as probe:
            return probe.fault(case)


class _Probe:
    """A running probe."""

    def __init__(self, folder: Path):
        self.folder, self.refused = folder, False

    def __enter__(self) -> _Probe:
        self.log = (self.folder / "probe.stderr").open("w+b")
        self.process = subprocess.Popen([str(PROBE), "frames"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        self.base = memory_of(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            stream.close()  # type: ignore[union-attr]

    def fault(self, case: Case) -> Fault | None:
        path = self.folder / f"input{case.suffix}"
        path.write_bytes(case.data)
        line = self._answer(json.dumps([str(path), FRAMES, False]))
        if line is None:
            return Fault("hang", "probe frames", f"no answer in {LIMIT:.0f} s")
        if not line:
            code = self.process.wait(10)
            self.log.seek(0)
            what = "hang" if code == -14 else "crash"  # the probe's own alarm
            return Fault(what, f"exit code {code} of probe frames", self.log.read()[-3000:].decode(errors="replace"))
        answer = json.loads(line)
        self.refused = "error" in answer
        if self.refused and (not answer["error"] or "\n" in answer["error"]):
            return Fault("message", "not one line", str(answer["error"]))
        if not self.refused and len(answer["indices"]) != FRAMES:
            return Fault("answer", f"{len(answer['indices'])} frames of {FRAMES}")
        growth = memory_of(self.process.pid, "VmHWM") - self.base
        return Fault("memory", "probe frames", f"{growth / 1e6:.0f} MB") if growth > MEMORY else None

    def _answer(self, asked: str) -> bytes | None:
        """The line that the probe answers; b"" where it ends, None where it says nothing."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(asked.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return b""
        line, end = b"", time.monotonic() + LIMIT
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                return b""
            line += chunk
        return line
