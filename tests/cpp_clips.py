"""What C++ makes of pictures and clips, and that it is what Python makes of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from cpp_build import assert_same_error, error_of, probe

from runtime.media.clip import Clip, sample_frames


def read(cpp: Path, paths: list[Path], frames: int = 4) -> list[dict[str, Any]]:
    """What C++ makes of files: Python's Clip as JSON, `frames` as one array [T, h, w, 3]."""
    answers = probe(cpp, "frames", [[str(path), frames, True] for path in paths])
    for answer in answers:
        if "error" not in answer:
            pixels = np.frombuffer(bytes.fromhex("".join(answer["frames"])), np.uint8)
            answer["frames"] = pixels.reshape(frames, *answer["size"], 3)
    return answers


def numbers(notes: list[str]) -> list[list[str]]:
    """The numbers in each note."""
    return [re.findall(r"\d+", note) for note in notes]


def assert_same(answer: dict[str, Any], path: Path, frames: int = 4, levels: int = 0) -> None:
    """The frames, times and notes of Python, or an error as in Python; levels: by which pixels may differ."""
    clips: list[Clip] = []
    expected = error_of(lambda: clips.append(sample_frames(path, frames, lambda image: image)))
    assert_same_error(answer, expected, str(path))
    if expected:
        return
    (clip,) = clips
    assert (answer["indices"], answer["timestamps"]) == (list(clip.indices), list(clip.timestamps)), path.name
    assert (answer["total"], answer["duration"]) == (clip.total, clip.duration), path.name
    assert numbers(answer["notes"]) == numbers(clip.notes), path.name
    assert answer["frames"].shape == clip.frames.shape, path.name
    assert np.abs(answer["frames"].astype(int) - clip.frames).max() <= levels, path.name


def assert_shows(answer: dict[str, Any], expected: np.ndarray) -> None:
    """Every pixel but those beside an edge, where compression blurs colours."""
    assert answer.get("size") == list(expected.shape[:2]), answer.get("error")
    off = np.abs(answer["frames"][0].astype(int) - expected).max(axis=2) > 40
    assert off.mean() < 0.1, f"{off.mean():.0%} of the pixels have another colour"
