"""Bytes that are not valid HTTP, or barely: framing, headers, pipelining, slow senders, connections cut in the middle.

A case is a JSON list of steps: ["send", text in latin-1], ["wait", milliseconds], ["read", milliseconds], ["half-close"], ["reset"].
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from typing import Any

from benchmarks.campaign import mutate_bytes
from benchmarks.campaign.kinds.http import HttpKind
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.server import MODEL, parse, request
from benchmarks.campaign.verdicts import Fault

_SHORT = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "what color is the cross ?"}], "max_tokens": 2}
).encode()
_PLAIN = (
    request("/v1/chat/completions", _SHORT),
    request("/health", method="GET"),
    request("/v1/models", method="GET"),
    request("/", method="GET"),
    request("/v1/video/tokens", b"{}"),
)
_HEADERS = (
    "Content-Length: -1",
    "Content-Length: 5, 5",
    "Content-Length: 99999999999999999999",
    "Content-Length: 0x10",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Expect: 100-continue",
    "Expect: nonsense",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    "Host: evil.example",
    "Host:",
    " folded: header",
    "No colon at all",
    "X-Nul: a\0b",
    "X-Latin: \xff\xfe",
    "Authorization: Basic \xe9",
    "Content-Type: application/json; charset=utf-16",
    "Content-Encoding: gzip",
    "Range: bytes=0-1,5-",
    "Connection: keep-alive, close, \x01",
)
_TARGETS = (
    "*",
    "//evil/",
    "http://evil/",
    "/%00",
    "/v1/models/" + "a" * 9000,
    "/../../etc/passwd",
    "/v1/models/%ff%fe",
    "/?" + "x=1&" * 2000,
)
_METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "BREW", "g\xe9t", "PRI")
_CHUNKS = (
    "5\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff\r\nx",
    "-1\r\n\r\n",
    "zz\r\n",
    "5;" + "e" * 9000 + "\r\nhello\r\n0\r\n\r\n",
    "1\r\nab\r\n0\r\nX: y\r\n\r\n",
)


_WORDS = {"['send']": 2, "['wait']": 2, "['read']": 2, "['half-close']": 1, "['reset']": 1}  # of a step, by its first


class RawHttp(HttpKind):
    name = "raw-http"
    share = 2.0
    clients = 12

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        return Case(json.dumps(_delivered(rng, rng.choice(_WAYS)(rng))).encode(), ".json")

    async def attempt(self, port: int, case: Case) -> Fault | None:
        steps = json.loads(case.data)
        if not all(isinstance(step, list) and len(step) == _WORDS.get(str(step[:1]), 0) for step in steps):
            return None  # made too small to mean anything
        received = await _play(port, steps)
        status = parse(received).status
        if status in (500, 501, 502):
            return Fault("answer", f"status {status}", received[:2000].decode("latin-1"))
        return None


async def _play(port: int, steps: list[list[Any]]) -> bytes:
    """Do the steps on one connection; what came back."""
    received = bytearray()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        for name, *value in steps:
            if name == "send":
                writer.write(value[0].encode("latin-1"))
                await asyncio.wait_for(writer.drain(), 10)
            elif name == "wait":
                await asyncio.sleep(value[0] / 1000)
            elif name == "half-close":
                writer.write_eof()
            elif name == "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
            else:
                while chunk := await asyncio.wait_for(reader.read(1 << 16), value[0] / 1000):
                    received += chunk
    except (OSError, asyncio.TimeoutError, RuntimeError):
        pass
    finally:
        writer.transport.abort()
    return bytes(received)


def _delivered(rng: random.Random, data: bytes) -> list[list[Any]]:
    """The bytes at once, in pieces with pauses, or not all of them; then what the client does."""
    text, steps = data.decode("latin-1"), []
    if rng.random() < 0.15:
        text = text[: rng.randrange(len(text) + 1)]
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.choice((0, 0, 0, 1, 3, 8))))
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        steps.append(["send", text[start:stop]])
        if cuts:
            steps.append(["wait", rng.choice((0, 1, 5, 40, 200))])
    end = rng.random()
    if end < 0.1:
        steps.append(["reset"])
    elif end < 0.2:
        steps += [["half-close"], ["read", 300]]
    else:
        steps.append(["read", rng.choice((50, 100, 300, 1500))])
    return steps


def _damaged(rng: random.Random) -> bytes:
    return mutate_bytes.mutated(rng, rng.choice(_PLAIN), _PLAIN)


def _with_headers(rng: random.Random) -> bytes:
    head, _, body = rng.choice(_PLAIN).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_HEADERS))
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _many_headers(rng: random.Random) -> bytes:
    head, _, body = rng.choice(_PLAIN).partition(b"\r\n\r\n")
    name, value, count = rng.choice(((8, 8, 5000), (8, 200_000, 1), (100_000, 1, 1), (8, 4000, 40), (1, 0, 300)))
    lines = b"".join(b"\r\n" + b"X" * name + str(n).encode() + b": " + b"v" * value for n in range(count))
    return head + lines + (b"\r\n\r\n" + body if rng.random() < 0.7 else b"")


def _chunked(rng: random.Random) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    )
    if rng.random() < 0.3:
        head += "Content-Length: 5\r\n"
    good = f"{len(_SHORT):x}\r\n{_SHORT.decode()}\r\n0\r\n\r\n"
    return (head + "\r\n" + rng.choice((good, *_CHUNKS))).encode("latin-1")


def _first_line(rng: random.Random) -> bytes:
    version = rng.choice(("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.1 x", "", "http/1.1"))
    target = rng.choice((*_TARGETS, "/v1/models", "/health"))
    return f"{rng.choice(_METHODS)} {target} {version}\r\nHost: 127.0.0.1\r\n\r\n".encode("latin-1")


def _pipelined(rng: random.Random) -> bytes:
    parts = [rng.choice(_PLAIN).replace(b"Connection: close\r\n", b"") for _ in range(rng.choice((2, 3, 20)))]
    if rng.random() < 0.5:
        parts.insert(rng.randrange(len(parts)), rng.choice(_WAYS[:4])(rng))
    return b"".join(parts)


def _wrong_length(rng: random.Random) -> bytes:
    head, _, body = request("/v1/chat/completions", _SHORT).partition(b"\r\n\r\n")
    length = len(_SHORT) + rng.choice((-1, 1, -20, 100, 1_000_000))
    return head.replace(f"Content-Length: {len(_SHORT)}".encode(), f"Content-Length: {length}".encode()) + b"\r\n\r\n" + body


def _other_protocol(rng: random.Random) -> bytes:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(64)
    return rng.choice(
        (hello, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(40), rng.randbytes(300), b"\r\n" * 500, b"\0" * 70_000)
    )


_WAYS = (_damaged, _with_headers, _many_headers, _chunked, _first_line, _pipelined, _wrong_length, _other_protocol)
