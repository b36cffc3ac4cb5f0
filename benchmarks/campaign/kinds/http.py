"""What all kinds share that talk to a running server: concurrent inputs, good requests beside them, and the search for a fault's input.

A fault of the server itself (it died, its log has a traceback, it grew, a good request got another answer) is attributed to the
latest inputs: each is tried alone on a new server, and the first that shows the fault again is the finding.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import in_child, memory_of
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.server import ANSWER, Server, essence, good_requests, send
from benchmarks.campaign.verdicts import Fault, judge

BESIDE = 0.3  # seconds between good requests
SUSPECTS = 24
DYING = 0.5  # seconds
SETTLING = 20.0  # seconds until connections that ended are closed
LEAK = 64 << 20  # bytes of memory that the second half of a session may add


class HttpKind:
    """Subclasses give `make` and `attempt`."""

    name = ""
    share = 1.0
    clients = 3

    def __init__(self) -> None:
        self.bundle = self.clip = Path()
        self.good: list[bytes] = []
        self.alone: list[Any] = []

    def lacking(self) -> str | None:
        missing = [name for name in ("fastapi", "uvicorn") if not importlib.util.find_spec(name)]
        return f'no {missing[0]}: pip install ".[serve]"' if missing else None

    def prepare(self, run: Run) -> None:
        self.bundle = demo_bundle(run)
        self.clip = self.bundle.parent / "media" / "h264.mp4"
        self.good = good_requests(self.clip)
        server = self._server(run)
        self.alone = [essence(asyncio.run(send(server.port, one))) for one in self.good]
        server.stop()

    def make(self, run: Run, index: int) -> Case:
        raise NotImplementedError

    async def attempt(self, port: int, case: Case) -> Fault | None:
        """Send one input; the fault of its own answer."""
        raise NotImplementedError

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts = run.counts(self.name)
        while not until(counts["next"]):
            server = self._server(run)
            suspects: deque[int] = deque(maxlen=SUSPECTS)
            try:
                own, fault = asyncio.run(self._session(run, server, until, suspects))
                fault = fault or server.fault() or self._held(server, counts)
            finally:
                ended = server.stop()
            fault = (
                fault or judge(ended) or (Fault("exit code", f"server: {ended.code}", ended.stderr[-2000:]) if ended.code else None)
            )
            for index, one in own:
                run.report(self, index, one)
            if fault:
                self._accuse(run, list(suspects), fault)

    def replay(self, run: Run, case: Case) -> Fault | None:
        server = self._server(run, "replay")
        try:
            return asyncio.run(self._alone(server, case)) or server.fault()
        finally:
            server.stop(signal.SIGKILL)

    def _server(self, run: Run, name: str = "") -> Server:
        return Server(self.bundle, run.work(f"{self.name}{name}"))

    async def _session(
        self, run: Run, server: Server, until: Callable[[int], bool], suspects: deque[int]
    ) -> tuple[list[tuple[int, Fault]], Fault | None]:
        """Faults of single answers, and that of the server, at which the session ends."""
        counts, own, broken = run.counts(self.name), [], []
        for one in self.good:  # what a server opens once it works
            await send(server.port, one)
        self.began_files = server.files()
        self.samples: list[int] = []

        async def client() -> None:
            while not broken and not until(counts["next"]):
                index = counts["next"]
                counts["next"] += 1
                suspects.append(index)
                fault = await self._attempt(server, self.make(run, index))
                counts["requests"] += 1
                if fault:
                    own.append((index, fault))
                    broken.append(None)
                if counts["requests"] % 8 == 0 and (fault := server.fault()):
                    broken.append(fault)
                if counts["requests"] % 200 == 0:
                    self.samples.append(memory_of(server.child.pid))

        async def beside() -> None:
            while not broken and not until(counts["next"]):
                for one, expected in zip(self.good, self.alone, strict=True):
                    fault = await self._compare(server, one, expected)
                    counts["requests"] += 1
                    if fault:
                        broken.append(fault)
                    if broken:
                        break
                    await asyncio.sleep(BESIDE)

        await asyncio.gather(beside(), *(client() for _ in range(self.clients)))
        return own, next(filter(None, broken), None)

    async def _alone(self, server: Server, case: Case) -> Fault | None:
        fault, *compared = await asyncio.gather(
            self._attempt(server, case), *(self._compare(server, *pair) for pair in zip(self.good, self.alone, strict=True))
        )
        return fault or next(filter(None, compared), None)

    async def _attempt(self, server: Server, case: Case) -> Fault | None:
        """The fault of one input's answer; the server's own where it has one, because that says more."""
        try:
            fault = await self.attempt(server.port, case)
        except OSError:
            return await _fault_of(server)
        return (await _fault_of(server) or fault) if fault else None

    async def _compare(self, server: Server, one: bytes, expected: Any) -> Fault | None:
        try:
            response = await send(server.port, one)
        except asyncio.TimeoutError:
            return Fault("hang", "good request", f"no answer in {ANSWER:.0f} s")
        except OSError as error:
            return await _fault_of(server) or Fault("answer", "good request", str(error))
        got = essence(response)
        if got == expected:
            return None
        fault = Fault("answer", "good request", f"{str(got)[:1500]}\nalone: {str(expected)[:1500]}")
        return await _fault_of(server) or fault

    def _held(self, server: Server, counts: Any) -> Fault | None:
        """Connections and memory that stay when every client has gone."""
        end = time.monotonic() + SETTLING
        while (files := server.files()) > self.began_files + 4:
            if time.monotonic() > end:
                return Fault("leak", "files", f"{files} files and connections, {self.began_files} at the beginning")
            time.sleep(0.2)
        growth = late_growth([*self.samples, memory_of(server.child.pid)])
        counts["memory growth, MB"] = max(counts["memory growth, MB"], growth >> 20)
        if growth > LEAK:
            return Fault("leak", "memory", f"{growth / 1e6:.0f} MB in the second half of the server's life")
        return None

    def _accuse(self, run: Run, suspects: list[int], fault: Fault) -> None:
        for index in reversed(suspects):
            again = self.replay(run, self.make(run, index))
            if again:
                run.report(self, index, again)
                return
        case = Case(json.dumps([self.make(run, index).data.decode("latin-1") for index in suspects]).encode(), ".together")
        run.found(self.name, suspects[-1] if suspects else 0, fault, case)


def late_growth(samples: Sequence[int]) -> int:
    """What the second half of a session adds: a leak goes on, caches and the allocator's high-water mark fill up in the first."""
    return samples[-1] - samples[len(samples) // 2]


async def _fault_of(server: Server) -> Fault | None:
    """The server's own fault; its connections break a moment before it can be seen to be dead."""
    await asyncio.sleep(DYING)
    return server.fault()


def demo_bundle(run: Run) -> Path:
    """The demo's bundle, and what a server and its client need imported."""
    from benchmarks.campaign.kinds.manifest import small_bundle

    run.corpus.make_media()
    in_child(run.corpus.make_demo, folder=run.work("corpus"))
    small_bundle(run)
    warm("av", "uvicorn", "runtime.server.app", "runtime.server.models", "runtime.server.serve")
    return run.corpus.demo
