"""The recipe from nothing: it runs, it goes on where it was stopped with the same result, and what it saves is a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from refusal import naming, refused
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer

from export.checkpoint import open_checkpoint
from export.demo import train
from export.demo.__main__ import main
from export.demo.recipe import Recipe, Stage
from export.demo.warmup import pictures
from export.families import llava_ov
from export.scenes.scene import clip_rng
from runtime.core.errors import ExportError

TINY = Recipe(
    seed=3,
    warmup_steps=2,
    warmup_pictures=2,
    stages=(Stage(4, 2, 1, 8), Stage(8, 1, 1, 8)),
    polish=Stage(8, 2, 1, 8, tower=False),
    threads=1,
)


@pytest.mark.parametrize(
    ("stopped_at", "then"),
    [
        pytest.param(
            *("joint T=4 2/3", ["joint T=4 2/3", "joint T=8 3/3", "polish T=8 1/2", "polish T=8 2/2"]), marks=pytest.mark.slow
        ),
        ("polish T=8 2/2", ["polish T=8 2/2"]),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch, stopped_at, then):
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setattr(train, "REPORT_EVERY", 1)
    whole = train.Training(TINY, tmp_path / "whole", lambda line: None).run()

    def stop(line: str) -> None:
        if line.startswith(stopped_at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.Training(TINY, tmp_path / "stopped", stop).run()
    assert not (tmp_path / "stopped" / "checkpoint").exists()
    lines: list[str] = []
    resumed = train.Training(TINY, tmp_path / "stopped", lines.append).run()
    assert [line.split("  ")[0] for line in lines] == then
    one, other = (load_file(path / "model.safetensors") for path in (whole, resumed))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-6)
    with pytest.raises(ExportError, match=naming(tmp_path / "stopped" / "state.pt", "seed", "--out")):
        train.Training(replace(TINY, seed=4), tmp_path / "stopped").run()


def test_what_is_saved_is_a_checkpoint_of_the_family(tmp_path):
    path = train.Training(replace(TINY, pooling="family"), tmp_path, lambda line: None).run()
    checkpoint = open_checkpoint(str(path))
    assert llava_ov.load_vision(checkpoint).grid == (9, 9)
    info = llava_ov.describe_vision(checkpoint)
    assert (info.frames, info.hidden_size) == (16, 128)
    assert llava_ov.load_llm(checkpoint).config.hidden_size == 128
    assert llava_ov.describe_llm(checkpoint).chat.video_token == "<video>"
    assert AutoTokenizer.from_pretrained(path)("which letter is shown ?").input_ids
    assert AutoImageProcessor.from_pretrained(path, backend="pil").size["height"] == 126
    assert (path / "model.safetensors").stat().st_size < 15e6


def test_the_warm_ups_labels_are_the_patches_majority():
    images, shown = pictures(clip_rng("train", 0, 0, 1), 6)
    assert images.shape == (6, 1, 126, 126, 3) and images.dtype == torch.uint8
    assert shown.shape == (6, 81, 2)
    assert 0.2 < (shown[..., 0] > 0).float().mean() < 0.8
    white = images[:, 0].reshape(6, 9, 14, 9, 14, 3).permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3).float().mean((2, 3))
    letters = shown[..., 0] > 5
    assert (shown[..., 1][letters] == 0).float().mean() > 0.8  # a star may reach into the plate
    assert white[letters].mean() < 150


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("--seed", "-1", [0]), ("--scale", "0", ["more than"]), ("--threads", "0", [1]), ("--pooling", "mean", ["mix", "family"])],
)
def test_options_out_of_range_are_one_line_and_exit_code_2(tmp_path, capsys, option, value, named):
    error = refused(capsys, main, "train", "-o", tmp_path / "run", option, value)
    assert naming(option.removeprefix("--"), value, *named).match(error)
    assert not list(tmp_path.iterdir())
