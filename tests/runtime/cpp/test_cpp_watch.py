"""Watching a stream: C++ and Python see the same frames and give the same answers, and log the frames that a slow engine drops."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from cpp_build import gridpool, probe, python, refusal
from PIL import Image
from rtsp_camera import camera
from video_files import pattern, write_two_streams, write_video

from runtime.bundle import Bundle
from runtime.chat import VideoChat
from runtime.media.stream import Stream

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
    done, expected = gridpool(cpp, *words), python(*words)
    assert done.returncode == expected.returncode == 0, done.stderr
    lines = _lines(done.stdout)
    assert lines == _lines(expected.stdout)
    assert [line["time"] for line in lines] == [1.0, 2.0, 3.0, 3.75]
    assert ("--split" in done.stderr) == ("--split" in expected.stderr) == (which == "bundle_path")


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
    done, expected = gridpool(cpp, *words), python(*words)
    assert done.stdout == expected.stdout
    assert len(done.stdout.splitlines()) == 2


def test_a_camera_faster_than_the_engine_loses_its_oldest_frames_and_they_are_logged(cpp: Path, split_path: Path, tmp_path: Path):
    video = write_video(tmp_path / "fast.mp4", pattern(1200, 32, 32), rate=600)  # two seconds, 600 frames each
    words = ("watch", split_path, video, "what ?", "--realtime", "--every", "5ms", "--window", "26ms", "--json")
    for done in (gridpool(cpp, *words), python(*words)):
        assert done.returncode == 0, done.stderr
        dropped = sum(line["dropped"] for line in _lines(done.stdout))
        logged = [int(number) for number in re.findall(r"(\d+) sampled frames dropped", done.stderr)]
        assert sum(logged) == dropped > 0
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
    ("words", "named"),
    [
        ("/dev/video99 Q", "/dev/video99"),
        ("rtsp://127.0.0.1:1/gone Q", "rtsp://127.0.0.1:1/gone"),
        ("http://127.0.0.1/x Q", "http://127.0.0.1/x"),
        ("/nowhere/clip.mp4 Q", "/nowhere/clip.mp4"),
        ("CLIP EMPTY", "question"),
        ("CLIP Q --every 3x", "3x"),
        ("CLIP Q --window 0s", "--window"),
        ("CLIP Q --count x", "--count"),
        ("CLIP Q --count -1", "--count"),
    ],
)
def test_both_runtimes_refuse_and_name_what_is_wrong(words: str, named: str, cpp: Path, split_path: Path, clip: Path):
    typed = [{"CLIP": str(clip), "Q": QUESTION, "EMPTY": ""}.get(word, word) for word in words.split()]
    for done in (gridpool(cpp, "watch", split_path, *typed), python("watch", split_path, *typed)):
        assert named in refusal(done)


def assert_watched(cpp: Path, path: Path) -> list[float]:
    """That C++ sees the frames and times that Python sees; the times."""
    (answer,) = probe(cpp, "watch", [str(path)])
    expected = [(seconds, rgb()) for seconds, rgb in Stream(str(path))]
    assert answer["times"] == [seconds for seconds, _ in expected] and answer["lost"] == 0
    assert answer["frames"] == [image.tobytes().hex() for _, image in expected]
    return answer["times"]


def test_watching_a_file_shows_what_a_clip_shows(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    whole = write_video(tmp_path / "whole.ts", pattern(20), rate=25, options={"g": "10", "bf": "2"})
    (tmp_path / "joined.ts").write_bytes(whole.read_bytes() * 2)  # a new clock in the middle
    assert assert_watched(cpp, tmp_path / "joined.ts") == pytest.approx([i / 25 for i in range(40)])
    Image.fromarray(quadrants).save(tmp_path / "one.png")
    assert assert_watched(cpp, tmp_path / "one.png") == [0.0]
    cover = ("mjpeg", av.stream.Disposition.attached_pic)
    assert len(assert_watched(cpp, write_two_streams(tmp_path / "cover.mp4", cover, ("libx264", 0)))) == 12
    assert len(assert_watched(cpp, write_video(tmp_path / "mirrored.mp4", [quadrants] * 3, matrix=(-1, 0, 0, 1)))) == 3
    (answer,) = probe(cpp, "watch", [str(tmp_path / "none.ts")])
    assert answer["kind"] == "VideoError" and str(tmp_path / "none.ts") in answer["error"]


def test_what_a_camera_loses_is_counted_and_does_not_end_it(cpp: Path):
    rng = np.random.default_rng(0)
    noisy = [(image // 2 + rng.integers(0, 60, image.shape)).astype(np.uint8) for image in pattern(120)]
    with camera(noisy, rate=50, lost=70) as url:  # keyframes every 50
        (lossy,) = probe(cpp, "watch", [url])
    with camera(noisy, rate=50) as url:
        (whole,) = probe(cpp, "watch", [url])
    assert whole["lost"] == 0
    assert lossy["lost"] >= 20 and len(lossy["times"]) >= 20
    assert set(lossy["frames"]) <= set(whole["frames"])  # nothing is shown that refers to what was lost
