"""Generated clips as files: what the commands write and print, and that a clip survives its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from refusal import naming, refused

from export.demo import CHECKPOINT, CLIPS
from export.demo.__main__ import main
from export.demo.clips import HOLD, ClipOptions, write_demo_clip, write_mp4
from export.scenes.draw import make_clip
from export.scenes.scene import SIZE, clip_rng
from runtime.core.errors import ExportError
from runtime.media.clip import sample_frames

SAMPLES = sorted(path.stem for path in CLIPS.glob("*.mp4"))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_clip_is_what_its_seed_generates(name):
    sample = json.loads((CLIPS / f"{name}.json").read_text())
    clip = make_clip(clip_rng("test", sample["seed"]))
    assert sample["clip"] == f"{name}.mp4"
    assert [q._asdict() for q in clip.questions] == sample["questions"]
    decoded = sample_frames(CLIPS / f"{name}.mp4", 16, lambda frame: frame[1::3, 1::3])
    assert decoded.total == 16 * HOLD and decoded.size == (3 * SIZE, 3 * SIZE) and decoded.repeated == 0
    assert np.abs(decoded.frames.astype(int) - clip.frames).mean() < 6


def test_a_clip_survives_its_file_frame_by_frame(tmp_path):
    clip = write_demo_clip(tmp_path / "clip.mp4", ClipOptions(seed=3, frames=12, scale=2))
    decoded = sample_frames(tmp_path / "clip.mp4", 12, lambda frame: frame[::2, ::2])
    assert decoded.indices == tuple(range(0, 12 * HOLD, HOLD))
    distance = np.abs(decoded.frames[:, None].astype(int) - clip.frames[None]).mean((2, 3, 4))
    assert distance.diagonal().max() < 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(("hold", "rate"), [(2, 10), (5, 30)])
def test_other_rates_show_every_frame_too(tmp_path, hold, rate):
    frames = np.repeat(np.arange(20, 180, 10, dtype=np.uint8), SIZE * SIZE * 3).reshape(16, SIZE, SIZE, 3)
    write_mp4(tmp_path / "clip.mp4", frames, scale=1, hold=hold, rate=rate)
    decoded = sample_frames(tmp_path / "clip.mp4", 16, lambda frame: frame)
    assert abs(decoded.frames.mean((1, 2, 3)) - np.arange(20, 180, 10)).max() < 4


def test_the_command_prints_what_can_be_asked(tmp_path, capsys):
    path = tmp_path / "new" / "clip.mp4"
    sample = json.loads((CLIPS / f"{SAMPLES[0]}.json").read_text())
    seed = str(sample["seed"])
    assert main(["clip", "--seed", seed, "-o", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=1) for line in lines] == [[q["question"], q["answer"]] for q in sample["questions"]]
    assert main(["clip", "--seed", seed, "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == sample | {"clip": "clip.mp4"}


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [("--seed", -1, 0), ("--frames", 7, 8), ("--frames", 1025, 1024), ("--scale", 0, 1), ("--scale", 17, 16)],
)
def test_options_out_of_range_are_one_line_and_exit_code_2(tmp_path, capsys, option, value, limit):
    error = refused(capsys, main, "clip", "-o", tmp_path / "clip.mp4", option, str(value))
    assert naming(option, value, limit).match(error)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match=naming(option.removeprefix("--"), value, limit)):
        ClipOptions(**{option.removeprefix("--"): value})


def test_a_place_that_takes_no_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=naming(tmp_path, "directory")):
        write_demo_clip(tmp_path)
    with pytest.raises(ExportError, match=naming(tmp_path / "file", "not")):
        write_demo_clip(tmp_path / "file" / "clip.mp4")


def test_the_checkpoints_preprocessor_config_is_one_that_transformers_reads():
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    assert (processor.size["height"], processor.size["width"]) == (SIZE, SIZE)
    assert type(processor).__name__ == "LlavaOnevisionImageProcessorPil"
    video = json.loads((CHECKPOINT / "video_preprocessor_config.json").read_text())
    assert video["num_frames"] == 16
    for key in ("size", "resample", "rescale_factor", "image_mean", "image_std"):
        assert video[key] == json.loads((CHECKPOINT / "preprocessor_config.json").read_text())[key]
