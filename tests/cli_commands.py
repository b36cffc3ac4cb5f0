"""Commands on a bundle that is not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.__main__ import main
from runtime.engine import EngineOptions


class Commands:
    """Commands on a bundle "B" that need none; asked: the arguments of what they call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
        self.patch, self.capsys = monkeypatch, capsys
        self.asked: list[Any] = []

        def opened(path: Path, verify: bool, progress: Any) -> SimpleNamespace:
            return SimpleNamespace(path=path, has_llm=False, verified=(verify, progress))

        def place(bundle: Any, backend: str, engine: EngineOptions) -> SimpleNamespace:
            assert bundle.path == Path("B")
            return SimpleNamespace(options=engine.on("cpu" if backend == "onnx" else "cuda"), note="")

        monkeypatch.setattr("runtime.bundle.Bundle.open", opened)
        monkeypatch.setattr("runtime.engine.open.place", place)

    def answering(self, name: str, result: Any, of: int = 1) -> None:
        """Let the function `name` return `result`; its last `of` arguments are noted."""
        self.patch.setattr(name, lambda *arguments: self.asked.extend(arguments[-of:]) or result)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = main([words[0], "B", *words[1:]])
        return code, *self.capsys.readouterr()
