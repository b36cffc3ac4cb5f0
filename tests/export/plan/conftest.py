"""A checkpoint that the tests change, and the refusal of its export before a weight file is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from refusal import names_under, refused

from export.__main__ import main
from export.demo import CHECKPOINT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def refusal(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Export the checkpoint, which must be refused before a weight file is opened; the error line."""

    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight file was opened")

    monkeypatch.setattr("safetensors.safe_open", opened)
    monkeypatch.setattr("export.weights.sha256_of", opened)

    def run(*args: str | Path) -> str:
        (tmp_path / "out").mkdir()
        line = refused(capsys, main, "--checkpoint", checkpoint, "--out", tmp_path / "out" / "bundle", *args)
        assert names_under(tmp_path / "out") == []
        return line

    return run
