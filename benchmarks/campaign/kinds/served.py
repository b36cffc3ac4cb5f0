"""A server that is killed or interrupted while it starts or answers: what it answered was right, and its bundle still opens."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from benchmarks.campaign.child import POLL, in_child
from benchmarks.campaign.jobs import opens
from benchmarks.campaign.run import Run
from benchmarks.campaign.server import Server, essence, good_requests, send
from benchmarks.campaign.verdicts import Fault, judge

LIFE = 1.5  # seconds from listening to the last moment at which one is stopped


class Served:
    """The good requests and how they are answered by a server that has nothing else to do."""

    def __init__(self, run: Run):
        self.good = good_requests(run.corpus.media / "h264.mp4")
        server = Server(run.corpus.demo, run.work("served"))
        self.alone = [essence(asyncio.run(send(server.port, one))) for one in self.good]
        server.stop()


def stopped_server(run: Run, served: Served, number: signal.Signals, share: float) -> Fault | None:
    """Start, ask, send the signal after a share of LIFE."""
    server = Server(run.corpus.demo, run.work("served"))
    wrong = asyncio.run(_until_stopped(server, served, number, share * LIFE))
    ended = server.stop(number)
    if wrong:
        return wrong
    if number == signal.SIGINT:
        fault = judge(ended)
        if fault or ended.code not in (0, 130):
            return fault or Fault("exit code", f"{ended.code} of a server after Ctrl-C", ended.stderr[-2000:])
    return in_child(opens, run.corpus.demo, folder=run.work("served"))


async def _until_stopped(server: Server, served: Served, number: signal.Signals, seconds: float) -> Fault | None:
    sent: list[None] = []

    async def ask(one: bytes, expected: Any) -> Fault | None:
        while not sent:
            try:
                response = await send(server.port, one, 30)
            except (OSError, asyncio.TimeoutError):
                return None if sent else Fault("answer", "no answer before the server was stopped")
            if sent:  # cut off, or refused because it ends
                return None
            if essence(response) != served.alone[served.good.index(one)]:
                return Fault("answer", "good request", str(essence(response))[:1000])
        return None

    async def stop() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(POLL)
        sent.append(None)
        server.child.signal(number)

    *faults, _ = await asyncio.gather(*(ask(*pair) for pair in zip(served.good, served.alone, strict=True)), stop())
    return next(filter(None, faults), None)
