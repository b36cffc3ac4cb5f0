"""Which frames of which clips calibration sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming
from video_files import write_video

from export.quantize import clips as clips_module
from export.quantize.clips import Clips
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import ExportError, VideoError

PREPROCESSING = Preprocessing((4, 6), "bilinear", 1 / 255, 0, 1)
OF_FRAMES = replace(PREPROCESSING, frames=(2, 3))


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[str, int]]:
    """Videos of one grey each, which their names tell; what was decoded of them."""
    asked: list[tuple[str, int]] = []

    def sample_frames(file: Path, frames: int, resize):
        asked.append((file.name, frames))
        if file.stem == "broken":
            raise VideoError("no video")
        return SimpleNamespace(frames=np.stack([resize(np.full((8, 9, 3), int(file.stem) + at, np.uint8)) for at in range(frames)]))

    monkeypatch.setattr(clips_module, "sample_frames", sample_frames)
    return asked


def videos(directory: Path, *names: str) -> Clips:
    for name in (*names, "notes.txt", "mp4"):
        (directory / name).touch()
    return Clips(PREPROCESSING, directory)


@pytest.mark.parametrize("ending", ["avi", "gif", "m4v", "mkv", "mov", "mp4", "mpg", "ts", "webm", "wmv", "MP4", "Mov"])
def test_files_of_these_endings_are_videos(tmp_path, decoded, ending):
    clips = videos(tmp_path, f"10.{ending}")
    assert [name for name, _ in decoded] == [] and len(list(clips.clips(9, 1))) == 1
    assert decoded == [(f"10.{ending}", 1)] and clips.source == f"1 videos of {tmp_path}"


def test_a_directory_without_videos_is_refused(tmp_path):
    (tmp_path / "a.mp3").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "a.mp3"):
        with pytest.raises(ExportError, match=naming(path, ".avi, .gif", ".wmv")):
            Clips(PREPROCESSING, path)
    assert Clips(PREPROCESSING).source == "clips of the demo's generator"


def test_of_many_videos_the_first_32_by_name_are_used(tmp_path, decoded):
    clips = videos(tmp_path, *(f"{number:03}.mp4" for number in reversed(range(40))))
    assert clips.source.startswith("32 videos of ")
    assert [round(float(pixels[0, 0, 0, 0]) * 255) for pixels, _ in clips.clips(99, 1)] == list(range(32))
    assert [name for name, _ in clips.clips(2, 5)] and decoded[-2:] == [("000.mp4", 5), ("001.mp4", 5)]


def test_all_videos_are_decoded_once_before(tmp_path, decoded):
    videos(tmp_path, "10.mp4", "20.mkv").check(5)
    assert decoded == [("10.mp4", 5), ("20.mkv", 5)]
    with pytest.raises(VideoError):
        videos(tmp_path, "broken.mp4").check(5)


@pytest.mark.parametrize(
    ("count", "greys"),
    [(1, [10]), (2, [10, 20]), (3, [10, 20, 30]), (4, [10, 20, 30, 11]), (7, [10, 20, 30, 11, 21, 31, 12])],
)
def test_frames_go_round_the_clips(tmp_path, decoded, count, greys):
    frames = videos(tmp_path, "10.mp4", "20.mp4", "30.mp4").frames(count)
    assert frames.shape == (count, 3, 4, 6) and frames.dtype == np.float32
    assert np.rint(frames[:, 0, 0, 0] * 255).tolist() == greys
    assert {frames for _, frames in decoded} == {-(-count // min(count, 3))}


@pytest.mark.parametrize(("count", "clips"), [(1, 1), (3, 1), (4, 1), (8, 2), (9, 2), (12, 3)])
def test_a_generated_clip_gives_four_frames_or_a_few_more(monkeypatch, count, clips):
    asked: list[tuple[int, int]] = []

    def drawn(self, number, frames):
        asked.append((number, frames))
        return [(np.full((frames, 3, 4, 6), index, np.float32), []) for index in range(number)]

    monkeypatch.setattr(Clips, "clips", drawn)
    frames = Clips(PREPROCESSING).frames(count)
    assert asked == [(clips, -(-count // clips))]
    assert frames[:, 0, 0, 0].tolist() == [at % clips for at in range(count)]


def test_questions_come_with_every_clip(tmp_path, decoded):
    ((_, questions),) = videos(tmp_path, "10.mp4").clips(3, 2)
    assert len(questions) == 3 and all(question.endswith("?") for question in questions)


@pytest.mark.parametrize(("preprocessing", "shape", "kind"), [(PREPROCESSING, (2, 3, 4, 6), np.float32), (OF_FRAMES, (2, 2, 3, 3), np.uint8)])  # fmt: skip
def test_a_graph_that_takes_frames_gets_them_in_its_size(tmp_path, decoded, preprocessing, shape, kind):
    (tmp_path / "10.mp4").touch()
    ((shown, _),) = Clips(preprocessing, tmp_path).clips(1, 2)
    assert shown.shape == shape and shown.dtype == kind
    assert shown[1].max() == shown[1].min() == (11 if kind is np.uint8 else np.float32(11 / 255))


def test_generated_clips_are_of_the_training_split_and_shown_from_start_to_end(monkeypatch):
    seeds: list[tuple] = []

    def make_clip(rng, frames):
        assert frames == 16
        index = rng[-1]
        questions = [SimpleNamespace(question=f"{index} {name}") for name in "abc"]
        return SimpleNamespace(frames=[np.full((8, 9, 3), 100 * index + at, np.uint8) for at in range(frames)], questions=questions)

    monkeypatch.setattr(clips_module, "make_clip", make_clip)
    monkeypatch.setattr(clips_module, "clip_rng", lambda *words: seeds.append(words) or words)
    found = list(Clips(OF_FRAMES).clips(2, 4))
    assert [shown[:, 0, 0, 0].tolist() for shown, _ in found] == [[0, 5, 10, 15], [100, 105, 110, 115]]
    assert found[1][1] == ["1 a", "1 b", "1 c"]
    assert {words[0] for words in seeds} == {"train"} and [words[-1] for words in seeds] == [0, 1]


COLORS = {"a.mp4": (200, 30, 30), "b.mp4": (30, 30, 200), "c.mp4": (30, 200, 30)}


@pytest.fixture
def clips(bundle, tmp_path) -> Clips:
    """Of three videos of one colour each: red, blue and green."""
    for name, color in COLORS.items():
        write_video(tmp_path / name, [np.full((64, 64, 3), color, np.uint8)] * 8)
    (tmp_path / "notes.txt").write_text("no video")
    return Clips(bundle.manifest.preprocessing, tmp_path)


def test_neighbours_are_of_different_clips(clips):
    frames = clips.frames(7)
    assert frames.shape == (7, 3, 126, 126)
    assert frames.mean((2, 3)).argmax(1).tolist() == [0, 2, 1, 0, 2, 1, 0]  # channels: red, blue, green


def test_frames_are_normalised_as_the_bundle_says(clips):
    red, green = clips.frames(1)[0, :2].mean((1, 2))
    assert red == pytest.approx(200 / 127.5 - 1, abs=0.05) and green == pytest.approx(30 / 127.5 - 1, abs=0.05)


def test_generated_frames_are_of_several_clips(bundle):
    frames = Clips(bundle.manifest.preprocessing).frames(8)  # two clips of four frames
    within = np.abs(frames[2:] - frames[:-2]).mean()
    assert np.abs(frames[1:] - frames[:-1]).mean() > 2 * within


def test_the_report_says_where_they_come_from(clips):
    assert clips.source.startswith("3 videos of ")
