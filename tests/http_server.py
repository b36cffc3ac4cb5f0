"""A real uvicorn on a free port of loopback for tests, and how requests with clips are written."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import uvicorn
from loop_time import pass_time

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

    def until_idle(self) -> None:
        """Wait until no request holds a place or memory."""
        until(lambda: not self.state.admission.accepted and not self.state.memory.held)

    def until_connected(self, count: int) -> None:
        """Wait until the server has so many connections."""
        until(lambda: len(self.server.server_state.connections) == count)

    def pass_time(self, seconds: float) -> None:
        """Set the clock of the server's event loop ahead and let the timers that are due then run."""
        loop = self.server.servers[0].get_loop()
        asyncio.run_coroutine_threadsafe(pass_time(seconds), loop).result(60)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what another thread or process does; `seconds` are for a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def running(models: Models, options: ServerOptions) -> Iterator[Running]:
    """A server over `models`, which stay open."""
    state = State(models, options)
    one = server(state, lifespan=False)
    one.config.host, one.config.port = "127.0.0.1", 0
    one.config.loop = "asyncio"  # also where uvloop is installed, whose clock can't be set
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
