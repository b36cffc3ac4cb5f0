"""A server under test, on the demo bundle in a forked child, and a client that sends any bytes to it.

The good requests are answered once by an idle server; whatever else is sent, they must get the same answers again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import POLL, Child, memory_of, reset_peak
from benchmarks.campaign.verdicts import Ended, Fault, judge, judge_log

MAX_BODY = 8 << 20  # bytes of a request that the server takes; it reads on for four times as much before it hangs up
OPTIONS = f"--port 0 --threads 1 --backend onnx --deadline 60 --max-body-mib {MAX_BODY >> 20} --max-media-mib 4".split()
MODEL = "demo"
START, ANSWER = 120.0, 90.0  # seconds that a start and an answer may take
MEMORY = 1 << 30  # bytes that a server may grow by


class Server:
    """`python -m runtime serve` in a forked child; `url` as soon as it listens."""

    def __init__(self, bundle: Path, folder: Path, options: Sequence[str] = ()):
        from runtime.__main__ import main

        words = ["serve", str(bundle), *OPTIONS, "--cache-mib", "16", *options]
        self.child = Child(lambda: main(words), folder, "server")
        self.port = self._listening()
        self.seen = len(self.log())
        self.base = memory_of(self.child.pid)
        reset_peak(self.child.pid)

    def _listening(self) -> int:
        end = time.monotonic() + START
        while time.monotonic() < end:
            ended = self.child.poll()
            if ended:
                raise RuntimeError(f"the server did not start: {ended.stderr[-2000:]}")
            found = re.search(r" on http://127\.0\.0\.1:(\d+)", self.log())
            if found:
                return int(found[1])
            time.sleep(10 * POLL)
        raise RuntimeError(f"the server does not listen: {self.child.wait(0).stderr[-2000:]}")

    def log(self) -> str:
        return self.child.err.read_text(errors="replace")

    def fault(self) -> Fault | None:
        """What is wrong with the server itself: it died, its log shows a traceback, it is too large."""
        ended = self.child.poll()
        if ended:
            return judge(ended) or Fault("crash", f"exit code {ended.code}", ended.stderr[-3000:])
        fault = judge_log(self.log()[self.seen :])
        growth = memory_of(self.child.pid, "VmHWM") - self.base
        return fault or (Fault("memory", "server", f"{growth / 1e6:.0f} MB") if growth > MEMORY else None)

    def files(self) -> int:
        """How many files and connections it has open."""
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        self.child.signal(number)
        return self.child.wait(60)


@dataclass(frozen=True)
class Response:
    """status 0 where the server closed without one."""

    status: int
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def send(port: int, data: bytes, limit: float = ANSWER) -> Response:
    """One request on a new connection; TimeoutError past `limit` seconds."""
    return await asyncio.wait_for(_exchange(port, data), limit)


def request(path: str, body: bytes = b"", method: str = "POST", kind: str = "application/json") -> bytes:
    """The bytes of a plain request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    if method == "POST":
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def _exchange(port: int, data: bytes) -> Response:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        received = bytearray()
        with contextlib.suppress(ConnectionError):  # answered, or cut off, before everything was sent
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                received += chunk
        return parse(bytes(received))
    finally:
        writer.transport.abort()


def parse(received: bytes) -> Response:
    """The first response in what was received."""
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(_chunks(body))
    return Response(int(found[1]) if found else 0, body)


def _chunks(body: bytes) -> list[bytes]:
    parts = []
    while body:
        line, _, rest = body.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            break
        if not size:
            break
        parts.append(rest[:size])
        body = rest[size + 2 :]
    return parts


def data_url(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def good_requests(clip: Path) -> list[bytes]:
    """Requests of every route whose answers are the same each time."""
    video = {"type": "video_url", "video_url": {"url": data_url(clip)}}

    def chat(text: str, *parts: dict, **more: Any) -> bytes:
        content = [*parts, {"type": "text", "text": text}]
        return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()

    tokens = json.dumps({"model": MODEL, "video_url": {"url": data_url(clip)}, "format": "safetensors"}).encode()
    return [
        request("/v1/chat/completions", chat("which shape appears last ?", video)),
        request("/v1/chat/completions", chat("how many objects are there ?", video, stream=True, max_tokens=8)),
        request("/v1/chat/completions", chat("what color is the cross ?", seed=3, temperature=0.9, max_tokens=12)),
        request("/v1/video/tokens", tokens),
        request("/v1/models", method="GET"),
    ]


def essence(response: Response) -> Any:
    """What of an answer must be the same each time: status, text, finish reason, counts, tokens. An answer that was cut is its bytes."""
    try:
        return _essence(response) if response.status == 200 else _beginning(response)
    except (KeyError, TypeError, ValueError):
        return _beginning(response)


def _beginning(response: Response) -> tuple[int, str]:
    return response.status, response.body[:300].decode(errors="replace")


def _essence(response: Response) -> Any:
    if response.body.startswith((b"data:", b":")):  # a stream; a slow one begins with a comment
        events = [json.loads(line[6:]) for line in response.body.decode().splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in event.get("choices", [])]
        return [(choice["delta"].get("content") or "", choice["finish_reason"]) for choice in choices]
    values = response.json()
    if not isinstance(values, dict):  # safetensors: a header, whose keys come in any order, and the data
        length = 8 + int.from_bytes(response.body[:8], "little")
        return json.loads(response.body[8:length]), response.body[length:]
    choices = values.get("choices")
    if choices:
        return [(one["message"]["content"], one["finish_reason"]) for one in choices], values["usage"]["total_tokens"]
    return [(one["id"], one.get("object")) for one in values.get("data", [])]
