"""A real uvicorn on a free port of loopback for tests, and how requests with clips are written."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import uvicorn

from runtime.server.models import Models
from runtime.server.options import ServerOptions
from runtime.server.serve import server
from runtime.server.state import State

NAME = "llava-ov"


@dataclass
class Running:
    """url without /v1; state: the server's own."""

    url: str
    state: State
    server: uvicorn.Server

    def client(self, key: str = "none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def until_idle(self, seconds: float = 10) -> None:
        """Wait until no request holds a place or memory."""
        end = time.monotonic() + seconds
        while self.state.admission.accepted or self.state.memory.held:
            assert time.monotonic() < end, "a request still holds something"
            time.sleep(0.01)


@contextlib.contextmanager
def running(models: Models, options: ServerOptions) -> Iterator[Running]:
    """A server over `models`, which stay open."""
    state = State(models, options)
    one = server(state, lifespan=False)
    one.config.host, one.config.port = "127.0.0.1", 0
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    while not one.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = one.servers[0].sockets[0].getsockname()[1]
    yield Running(f"http://127.0.0.1:{port}", state, one)
    one.should_exit = True
    thread.join(20)
    state.clips.close()


def data_url(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def question(text: str, *urls: str) -> list[dict]:
    clips = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*clips, {"type": "text", "text": text}]}]
