"""Load on the server, over loopback: time to first token and tokens/s with 1, 8 and 32 clients, memory over thousands of requests,
and what happens above the queue's limit.

python benchmarks/server_load.py [--requests 20000] [--threads 2]
The server is a separate process on the demo checkpoint; clients stream, each asks its next question when the last is answered.
Bounded in count and in time, and only ever sent to 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from harness import ROOT, log, run_python, table, write_section

CLIENTS, LIMIT_SECONDS = (1, 8, 32), 170
QUESTIONS = ("what color is the flash ?", "which letter is shown ?", "which shape appears last ?", "how many objects are there ?")


@dataclass
class Phase:
    """What one number of clients got."""

    clients: int
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    status: Counter = field(default_factory=Counter)
    rss: list[float] = field(default_factory=list)  # MB, one a second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "demo"
        log("exporting the demo checkpoint")
        run_python(["-m", "export", "--model", "llava-ov", "--out", str(bundle)], args.threads)
        phases, over = asyncio.run(_measure(bundle, args.requests, args.threads))
    write_section("server-load", _text(phases, over, args))
    return 0


async def _measure(bundle: Path, requests: int, threads: int) -> tuple[list[Phase], Phase]:
    share = {1: 0.1, 8: 0.45, 32: 0.45}
    phases = []
    with _server(bundle, threads) as (process, url):
        await _phase(process, url, 1, 20)  # unmeasured
        for clients in CLIENTS:
            phases.append(await _phase(process, url, clients, round(requests * share[clients])))
            log(f"{clients} clients: {phases[-1].status}")
    with _server(bundle, threads, "--batch", "4", "--queue", "8") as (process, url):
        over = await _phase(process, url, 32, 800)
    return phases, over


class _server:  # noqa: N801: used as a function
    def __init__(self, bundle: Path, threads: int, *options: str):
        command = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", "--threads", str(threads), *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> tuple[int, str]:
        assert self.process.stderr
        for line in self.process.stderr:
            if " on http://" in line:
                return self.process.pid, line.rpartition(" on ")[2].strip()
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(30):
            raise SystemExit(f"the server ended with {self.process.returncode}")


async def _phase(process: int, url: str, clients: int, requests: int) -> Phase:
    import httpx

    assert url.startswith("http://127.0.0.1:")
    phase, left, end = Phase(clients), iter(range(requests)), time.monotonic() + LIMIT_SECONDS / 3
    clip = (ROOT / "export/demo/clips/flash.mp4").read_bytes()
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(clip).decode()}}
    bodies = [
        json.dumps(
            {
                "model": "demo",
                "messages": [{"role": "user", "content": [video, {"type": "text", "text": question}]}],
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        for question in QUESTIONS
    ]

    async def client(http: httpx.AsyncClient) -> None:
        for number in left:
            if time.monotonic() > end:
                return
            start, first = time.perf_counter(), None
            headers = {"Content-Type": "application/json"}
            path = f"{url}/v1/chat/completions"
            async with http.stream("POST", path, content=bodies[number % len(bodies)], headers=headers) as response:
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if first is None and event.get("choices") and event["choices"][0]["delta"].get("content"):
                        first = time.perf_counter() - start
                    if event.get("usage"):
                        phase.tokens += event["usage"]["completion_tokens"]
                    if event.get("error"):
                        phase.status["error event"] += 1
            phase.status[response.status_code] += 1
            if first is not None:
                phase.first.append(first)

    async def watch() -> None:
        while True:
            phase.rss.append(_rss(process))
            await asyncio.sleep(0.5)

    start = time.perf_counter()
    watching = asyncio.ensure_future(watch())
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=clients)) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    watching.cancel()
    phase.seconds = time.perf_counter() - start
    return phase


def _rss(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _text(phases: list[Phase], over: Phase, args: argparse.Namespace) -> str:
    rows = [
        [
            phase.clients,
            sum(phase.status.values()),
            1000 * _quantile(phase.first, 0.5),
            1000 * _quantile(phase.first, 0.99),
            sum(phase.status.values()) / phase.seconds,
            phase.tokens / phase.seconds,
            phase.rss[0],
            phase.rss[len(phase.rss) // 2],
            phase.rss[-1],
        ]
        for phase in phases
    ]
    total = sum(sum(phase.status.values()) for phase in phases)
    server_errors = sum(n for phase in phases for status, n in phase.status.items() if status != 200)
    # More clients at once need more buffers; a leak is what grows while their number stays.
    growth = [phase.rss[-1] - phase.rss[len(phase.rss) // 2] for phase in phases]
    facts = [
        ["requests in all", f"{total:,}", "≥ 5,000", "yes" if total >= 5000 else "no"],
        ["answers other than 200 below the queue's limit", str(server_errors), "0", "yes" if not server_errors else "no"],
        ["RSS at the end of a phase minus midway, the largest, MB", f"{max(growth):.1f}", "flat", ""],
        ["32 clients on 4 + 8 places: 200", str(over.status[200]), "", ""],
        ["32 clients on 4 + 8 places: 429", str(over.status[429]), "> 0", "yes" if over.status[429] else "no"],
        [
            "32 clients on 4 + 8 places: anything else",
            str(sum(over.status.values()) - over.status[200] - over.status[429]),
            "0",
            "",
        ],
    ]
    return (
        f"The demo checkpoint, {args.threads} threads for the server; clients on the same cores. Every request carries the clip (a data: URL of "
        f"{(ROOT / 'export/demo/clips/flash.mp4').stat().st_size / 1000:.0f} kB) and one of {len(QUESTIONS)} questions; answers are one or two tokens, so this "
        "measures the server, not a model.\n\n"
        + table(["clients", "requests", "TTFT p50 ms", "p99 ms", "requests/s", "tokens/s", "RSS MB, begin", "midway", "end"], rows)
        + "\n\n"
        + table(["", "measured", "target", "met"], facts)
    )


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    sys.exit(main())
