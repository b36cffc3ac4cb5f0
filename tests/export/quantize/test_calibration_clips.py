"""Which frames of which clips calibration looks at, and the prompts around them: on stand-ins for decoding and for the bundle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export.quantize import calibration
from export.quantize.calibration import Clips, calibration_prompts
from runtime.core.errors import ExportError, VideoError
from runtime.engine import EngineOptions

PREPROCESSING = {"size": [4, 6], "resample": "bilinear", "rescale_factor": 1 / 255, "image_mean": 0, "image_std": 1}
OF_FRAMES = PREPROCESSING | {"frames": [2, 3]}


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[str, int]]:
    """Videos of one grey each, which their names tell; what was decoded of them."""
    asked: list[tuple[str, int]] = []

    def sample_frames(file: Path, frames: int, resize):
        asked.append((file.name, frames))
        if file.stem == "broken":
            raise VideoError("no video")
        return SimpleNamespace(frames=np.stack([resize(np.full((8, 9, 3), int(file.stem) + at, np.uint8)) for at in range(frames)]))

    monkeypatch.setattr(calibration, "sample_frames", sample_frames)
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


def test_a_directory_that_is_none_or_holds_none_is_refused(tmp_path):
    (tmp_path / "a.mp3").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "a.mp3"):
        with pytest.raises(ExportError, match=r"holds no video \(\.avi, \.gif, .*\.wmv\); give a directory"):
            Clips(PREPROCESSING, path)
    assert Clips(PREPROCESSING).source == "clips of the demo's generator"


def test_of_many_videos_the_first_32_in_the_order_of_their_names_are_taken(tmp_path, decoded):
    clips = videos(tmp_path, *(f"{number:03}.mp4" for number in reversed(range(40))))
    assert clips.source.startswith("32 videos of ")
    assert [round(float(pixels[0, 0, 0, 0]) * 255) for pixels, _ in clips.clips(99, 1)] == list(range(32))
    assert [name for name, _ in clips.clips(2, 5)] and decoded[-2:] == [("000.mp4", 5), ("001.mp4", 5)]


def test_all_that_quantisation_will_look_at_is_decoded_once_before(tmp_path, decoded):
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
def test_of_the_demo_a_clip_gives_four_frames_or_a_few_more(monkeypatch, count, clips):
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
    ((given, _),) = Clips(preprocessing, tmp_path).clips(1, 2)
    assert given.shape == shape and given.dtype == kind
    assert given[1].max() == given[1].min() == (11 if kind is np.uint8 else np.float32(11 / 255))


def test_clips_of_the_demo_are_of_the_training_split_and_show_their_whole_length(monkeypatch):
    seeds: list[tuple] = []

    def make_clip(rng, frames):
        assert frames == 16
        index = rng[-1]
        questions = [SimpleNamespace(question=f"{index} {name}") for name in "abc"]
        return SimpleNamespace(frames=[np.full((8, 9, 3), 100 * index + at, np.uint8) for at in range(frames)], questions=questions)

    monkeypatch.setattr("export.demo.draw.make_clip", make_clip)
    monkeypatch.setattr("export.demo.world.clip_rng", lambda *words: seeds.append(words) or words)
    found = list(Clips(OF_FRAMES).clips(2, 4))
    assert [shown[:, 0, 0, 0].tolist() for shown, _ in found] == [[0, 5, 10, 15], [100, 105, 110, 115]]
    assert found[1][1] == ["1 a", "1 b", "1 c"]
    assert {words[0] for words in seeds} == {"train"} and [words[-1] for words in seeds] == [0, 1]


class FakePrompt:
    def __init__(self, bundle):
        self.bundle = bundle

    def ids(self, question):
        return f"ids of {question}"

    def embed(self, ids, tokens):
        return ids, tokens


@pytest.fixture
def engines(monkeypatch) -> list[SimpleNamespace]:
    made: list[SimpleNamespace] = []

    class Encoder:
        @classmethod
        def open(cls, bundle, backend, options):
            assert (backend, options) == ("onnx", EngineOptions("cpu"))
            encoder = SimpleNamespace(tokens=lambda pixels: (pixels * 2).astype(np.float16), engine=SimpleNamespace(closed=False))
            encoder.engine.close = lambda: setattr(encoder.engine, "closed", True)
            made.append(encoder.engine)
            return encoder

    monkeypatch.setattr(calibration, "Prompt", FakePrompt)
    monkeypatch.setattr(calibration, "VisionEncoder", Encoder)
    return made


def test_prompts_are_two_questions_about_each_of_four_clips(engines):
    asked: list[tuple[int, int]] = []

    def clips(count, frames):
        asked.append((count, frames))
        return [(np.full((frames, 1), index, np.float32), ["a", "b", "c"]) for index in range(count)]

    bundle = SimpleNamespace(manifest=SimpleNamespace(frames=3))
    prompts = list(calibration_prompts(bundle, SimpleNamespace(clips=clips)))
    assert asked == [(4, 3)] and [ids for ids, _ in prompts] == ["ids of a", "ids of b"] * 4
    assert [tokens.tolist() for _, tokens in prompts[::2]] == [[[2 * index]] * 3 for index in range(4)]
    assert prompts[0][1].dtype == np.float16
    (engine,) = engines
    assert engine.closed


def test_tokens_that_are_given_stand_in_the_prompts_and_no_clip_is_made(engines):
    prompts = list(calibration_prompts(SimpleNamespace(), None, "tokens"))
    assert len(prompts) == 3 and engines == []
    assert all(tokens == "tokens" and ids.startswith("ids of ") and ids.endswith("?") for ids, tokens in prompts)
