"""Watching a stream: C++ and Python see the same frames and say the same, and a slow engine drops frames aloud."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cpp_build import gridpool, python
from rtsp_camera import camera
from video_files import pattern, write_video

from runtime.bundle import Bundle
from runtime.chat import VideoChat

QUESTION = "which shape appears last ?"


@pytest.fixture(scope="module")
def split_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, split, with its LLM."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "llava-ov-split"
    export_bundle(ExportOptions(out=str(out), split=True))
    return out


def _lines(text: str) -> list[dict]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [{**line, "seconds": sorted(line["seconds"])} for line in lines]


@pytest.mark.parametrize("which", ["split_path", "frames_bundle_path", "bundle_path"])
def test_a_file_is_watched_as_python_watches_it(which: str, cpp: Path, clip: Path, request: pytest.FixtureRequest):
    words = ("watch", request.getfixturevalue(which), clip, QUESTION, "--every", "1s", "--window", "4s", "--json")
    said, expected = gridpool(cpp, *words), python(*words)
    assert said.returncode == expected.returncode == 0, said.stderr
    lines = _lines(said.stdout)
    assert lines == _lines(expected.stdout)
    assert [line["time"] for line in lines] == [1.0, 2.0, 3.0, 3.75]
    assert ("--split" in said.stderr) == ("--split" in expected.stderr) == (which == "bundle_path")


def test_a_whole_clip_in_the_window_is_answered_like_a_file(cpp: Path, split_path: Path, clip: Path):
    chat = VideoChat.open(Bundle.open(split_path))
    expected = "".join(chat.ask(clip, QUESTION))
    done = gridpool(cpp, "watch", split_path, clip, QUESTION, "--every", "60s", "--window", "4s", "--json")
    (line,) = _lines(done.stdout)
    assert (line["text"], line["ids"], line["frames"]) == (expected, chat.answer.ids, list(range(16)))


def test_tokens_of_a_split_bundle_are_those_of_python(cpp: Path, split_path: Path, clip: Path, tmp_path: Path):
    gridpool(cpp, "tokens", split_path, clip, "-o", tmp_path / "tokens.npz")
    expected = VideoChat.open(Bundle.open(split_path)).vision.encode(clip).tokens
    got = np.load(tmp_path / "tokens.npz")["visual_tokens"]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_watching_stops_after_the_answers_that_were_asked_for(cpp: Path, split_path: Path, clip: Path):
    words = ("watch", split_path, clip, QUESTION, "--every", "500ms", "--count", "2")
    said, expected = gridpool(cpp, *words), python(*words)
    assert said.stdout == expected.stdout
    assert len(said.stdout.splitlines()) == 2


def test_a_camera_faster_than_the_engine_loses_its_oldest_frames_aloud(cpp: Path, split_path: Path, tmp_path: Path):
    video = write_video(tmp_path / "fast.mp4", pattern(1200, 32, 32), rate=600)  # two seconds, 600 frames each
    words = ("watch", split_path, video, "what ?", "--realtime", "--every", "5ms", "--window", "26ms", "--json")
    for done in (gridpool(cpp, *words), python(*words)):
        assert done.returncode == 0, done.stderr
        dropped = sum(line["dropped"] for line in _lines(done.stdout))
        told = [
            int(number)
            for number in re.findall(r"slower than the camera: (\d+) sampled frames dropped, the newest kept", done.stderr)
        ]
        assert sum(told) == dropped > 0
        assert _lines(done.stdout)[-1]["time"] > 1.5  # the newest are kept


def test_a_camera_on_the_network_is_watched_until_it_hangs_up(cpp: Path, split_path: Path):
    with camera(pattern(60), rate=10) as url:
        words = ("watch", split_path, url, QUESTION, "--every", "500ms", "--window", "1.6s", "--json")
        for done in (gridpool(cpp, *words), python(*words)):
            assert done.returncode == 0, done.stderr
            lines = _lines(done.stdout)
            # FFmpeg looks at a stream for three seconds before it gives the first frame
            assert len(lines) >= 3 and np.allclose([line["time"] for line in lines[:3]], [0.5, 1.0, 1.5])
            assert [line["frames"][-1] for line in lines[:3]] == [5, 10, 15]  # ten a second


@pytest.mark.parametrize(
    "words",
    [
        "/dev/video99 Q",
        "rtsp://127.0.0.1:1/gone Q",
        "http://127.0.0.1/x Q",
        "/nowhere/clip.mp4 Q",
        "CLIP EMPTY",
        "CLIP Q --every 3x",
        "CLIP Q --window 0s",
        "CLIP Q --count x",
    ],
)
def test_faults_read_like_those_of_python(words: str, cpp: Path, split_path: Path, clip: Path):
    typed = [{"CLIP": str(clip), "Q": QUESTION, "EMPTY": ""}.get(word, word) for word in words.split()]
    said, expected = gridpool(cpp, "watch", split_path, *typed), python("watch", split_path, *typed)
    assert said.returncode == expected.returncode == 2
    assert said.stderr.replace("gridpool ", "python -m runtime ") == expected.stderr
