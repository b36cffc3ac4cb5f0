"""What visual tokens cost on the way to a remote LLM: bytes and time of one request, uncompressed, 4:1 and 8:1.

python benchmarks/server_wire.py [--rounds 5]
The body that runtime.llm.remote sends is built, sent over loopback, parsed there and loaded with torch.load; at 20 and 100
Mbit/s the time on the wire is computed from the bytes. 32 frames of 27x27 tokens, hidden sizes of Qwen2 0.5B and 7B, random values.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from types import SimpleNamespace

import numpy as np
from harness import arguments, table, write_section

FRAMES = 32
KEPT = {"uncompressed": 729, "st-gridpool, 4.3:1": 169, "st-gridpool-8x, 8.7:1": 84}


def main() -> int:
    args = arguments(__doc__.splitlines()[0], rounds=5).parse_args()
    rows = []
    with _Receiver() as receiver:
        for size, hidden in (("0.5B", 896), ("7B", 3584)):
            first = 0
            for name, kept in KEPT.items():
                times = [receiver.send(_tokens(FRAMES * kept + 1, hidden)) for _ in range(args.rounds + 1)][1:]
                length = receiver.length
                first = first or length
                build, whole = (median(values) for values in zip(*times, strict=True))
                wire = [8 * length / speed for speed in (20e6, 100e6)]
                rows.append([size, name, FRAMES * kept + 1, length / 1e6, first / length, 1000 * build, 1000 * whole, *wire])
    columns = [
        "LLM",
        "tokens",
        "rows",
        "MB",
        "less by",
        "build ms",
        "loopback, parse, load ms",
        "at 20 Mbit/s, s",
        "at 100 Mbit/s, s",
    ]
    text = (
        f"{FRAMES} frames, float16, base64 in JSON, median of {args.rounds}. The last two columns are computed from the bytes.\n\n"
    )
    write_section("server-wire", text + table(columns, rows))
    return 0


def _tokens(rows: int, hidden: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, hidden)).astype(np.float16)


class _Receiver:
    """Takes a chat request as the remote would, up to the loaded tensor."""

    def __enter__(self) -> _Receiver:
        import torch

        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                part = json.loads(raw)["messages"][0]["content"][0]
                torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True)
                receiver.length = len(raw)
                answer = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def send(self, tokens: np.ndarray) -> tuple[float, float]:
        """(seconds to build the body, seconds to send it and have it loaded there)."""
        from runtime.llm.chat import Chat, ClipTokens
        from runtime.llm.remote import LLMOptions, RemoteLLM
        from runtime.llm.wire import request_body

        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        bundle = SimpleNamespace(has_llm=False, manifest=SimpleNamespace(tokens_per_clip=len(tokens)))
        llm = RemoteLLM(bundle, LLMOptions(url, "m"))  # type: ignore[arg-type]
        content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
        chat = Chat([{"role": "user", "content": content}], [ClipTokens("clip", tokens)])
        start = time.perf_counter()
        request_body(chat, "m", llm.clip_data)
        built = time.perf_counter()
        chat = Chat(chat.messages, chat.clips)
        llm.close()

        async def ask() -> None:
            async for _ in llm.answer(chat):
                pass

        begin = time.perf_counter()
        asyncio.run(ask())
        return built - start, time.perf_counter() - begin - (built - start)


if __name__ == "__main__":
    sys.exit(main())
