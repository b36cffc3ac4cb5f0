from __future__ import annotations

import pytest
from cli_commands import Commands


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Commands:
    return Commands(monkeypatch, capsys)
