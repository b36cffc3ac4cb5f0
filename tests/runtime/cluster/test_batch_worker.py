"""A worker's row of one file, on a stand-in for the encoder: its tokens, or why there are none."""

from __future__ import annotations

import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.cluster import batch
from runtime.core.errors import VideoError
from runtime.engine import EngineOptions


@pytest.fixture
def row(tmp_path, monkeypatch):
    """row(name, value): of a file whose first token begins with `value`; the other values are 0."""
    opened = []

    def row(name: str, value: float = 1.5) -> dict:
        def encode(path):
            if path.endswith("torn.mp4"):
                raise VideoError("the clip\n is torn")
            return SimpleNamespace(tokens=np.array([[value, 0, 0], [0, 0, 0]], np.float32))

        monkeypatch.setattr(batch.Bundle, "open", lambda path: f"bundle {path}")
        encoder = SimpleNamespace(encode=encode)
        monkeypatch.setattr(batch.VisionEncoder, "open", lambda *arguments: opened.append(arguments) or encoder)
        one = batch.Worker("b", "onnx", EngineOptions("cpu", 2, True))
        assert opened[-1] == ("bundle b", "onnx", EngineOptions("cpu", 2, True))
        path = str(tmp_path / name)
        result = one.row(path)
        assert {key: value.tolist() for key, value in one({"path": np.array([path])}).items()} == {
            key: [value] for key, value in result.items()
        }
        return result

    return row


def test_it_has_the_tokens_in_float16_and_what_the_file_was(row, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"abc")
    os.utime(tmp_path / "a.mp4", ns=(5, 7_000_000_001))
    assert row("a.mp4") == {
        "path": str(tmp_path / "a.mp4"),
        "size": 3,
        "mtime_ns": 7_000_000_001,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # of NIST's example "abc"
        "tokens": b"\x00\x3e" + bytes(10),  # 1.5 is 0x3e00
        "error": None,
    }


def test_an_error_is_in_the_row_of_its_file(row, tmp_path):
    for name in ("a.mp4", "torn.mp4"):
        (tmp_path / name).write_bytes(b"abc")
    torn, large, absent = row("torn.mp4"), row("a.mp4", 65_520.0), row("absent.mp4")
    assert (torn["error"], torn["tokens"], torn["size"]) == ("the clip is torn", None, 3)
    assert naming("float16").match(large["error"]) and large["tokens"] is None
    assert "No such file" in absent["error"] and absent["size"] is absent["sha256"] is None
    assert row("a.mp4", 65_504.0)["error"] is None
    (tmp_path / "folder").mkdir()
    assert row("folder")["sha256"] is row("folder")["error"] is None  # what a directory is worth, the decoder says


def test_what_overflows_float16_warns_of_nothing(row, tmp_path):
    (tmp_path / "a.mp4").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert naming("float16").match(row("a.mp4", 1e9)["error"])
