"""Machines with one GPU and without any, as the driver would tell of them."""

from __future__ import annotations

import pytest
from trt_bundle import ORIN

from runtime.engine import cuda


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpus", lambda: (ORIN,))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpus", lambda: ())
