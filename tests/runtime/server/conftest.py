"""One server for all tests that need no options of their own, and a way to start another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from http_server import NAME, Running, data_url, running

from export.demo import CLIPS
from runtime.engine import EngineOptions
from runtime.server.models import Models, ServedModel
from runtime.server.options import ServerOptions


@pytest.fixture(scope="session")
def models(bundle_path: Path) -> Iterator[Models]:
    opened = Models.open([bundle_path], ServerOptions(batch=4), "onnx", EngineOptions(threads=1))
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
