"""One server for all tests that need no options of their own, and a way to start another."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from http_server import NAME, Running, data_url, running, until

from export.demo import CLIPS
from runtime.engine import EngineOptions
from runtime.server.models import Models, ServedModel
from runtime.server.options import ServerOptions

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def models(bundle_path: Path) -> Iterator[Models]:
    opened = Models.open([bundle_path], ServerOptions(batch=4, backend="onnx", engine=EngineOptions(threads=1)))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def served(models: Models) -> ServedModel:
    return models[NAME]


@pytest.fixture
def start(models: Models) -> Iterator[Callable[..., Running]]:
    """start(**options of ServerOptions): a server that lives as long as the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(models, ServerOptions(**{"batch": 4} | options)))


@pytest.fixture(scope="session")
def server(models: Models) -> Iterator[Running]:
    with running(models, ServerOptions(batch=4)) as one:
        yield one


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def video() -> str:
    """The shipped clip shapes.mp4 as a data: URL."""
    return data_url(CLIPS / "shapes.mp4")


@pytest.fixture
def serving() -> list[str]:
    """More options of the command line for `alone`."""
    return []


@pytest.fixture
def alone(bundle_path, tmp_path, serving):
    """A server in a process of its own, as `python -m runtime serve` starts it: (the process, its URL, its log)."""
    log = tmp_path / "log"
    options = ["--port", "0", "--backend", "onnx", "--threads", "1", *serving]
    command = [sys.executable, "-m", "runtime", "serve", str(bundle_path), *options]
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stderr=file, stdout=file)
    try:
        until(lambda: process.poll() is not None or re.search(r" on http://\S+\n", log.read_text()), 120)
        yield process, log.read_text().rpartition(" on ")[2].strip(), log
    finally:
        process.kill()
        process.wait()
