"""A clip whose groups of pictures are open."""

from __future__ import annotations

from pathlib import Path

import pytest
from video_files import OPEN, pattern, write_video


@pytest.fixture(scope="session")
def open_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("open") / "open.ts", pattern(96), rate=25, options=OPEN)
