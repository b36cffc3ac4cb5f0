"""The world is what it says, its clips survive the way through a video file, and the shipped model answers about them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration

from export.demo import CHECKPOINT, CLIPS
from export.demo.__main__ import main
from export.demo.clips import HOLD, ClipOptions, write_demo_clip
from export.demo.world import COLORS, DIRECTIONS, KINDS, LETTERS, NUMBERS, SHAPES, make_clip
from runtime.errors import ExportError
from runtime.preprocess import Preprocessor, load_clip
from runtime.video import sample_frames

SAMPLES = ("shapes", "flash")


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    config = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    size = [config["size"]["height"], config["size"]["width"]]
    return Preprocessor({key: config[key] for key in ("resample", "rescale_factor", "image_mean", "image_std")} | {"size": size})


@pytest.fixture(scope="module")
def model() -> LlavaOnevisionForConditionalGeneration:
    return LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def answer(model, tokenizer, pixel_values: np.ndarray, question: str) -> str:
    """transformers' own generate, with one placeholder for each of its 16 x 16 + 1 visual tokens."""
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt.replace("<video>", "<video>" * (pixel_values.shape[0] * 16 + 1)), return_tensors="pt").input_ids
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=torch.from_numpy(pixel_values)[None],
            max_new_tokens=4,
            do_sample=False,
        )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


def pool_with_st_gridpool(features: torch.Tensor) -> torch.Tensor:
    """PTG (stride 2 and 4, groups of four) and NSP 2 x 2 on [16, 64, D], spelled out frame by frame."""
    frames = list(features.view(16, 8, 8, -1))
    for stride in (2, 4):
        sampled = range(stride - 1, 16, stride)
        before = list(frames)
        for group in range(len(sampled) // 4):
            chosen = sampled[4 * group : 4 * group + 4]
            halves = [before[t].view(4, 2, 4, 2, -1).mean((1, 3)) for t in chosen]
            frames[chosen[-1]] = torch.cat([torch.cat(halves[:2], 1), torch.cat(halves[2:], 1)], 0)
    windows = torch.stack(frames).view(16, 4, 2, 4, 2, -1).transpose(2, 3).flatten(3, 4)  # [16, 4, 4, 4, D]
    weights = windows.pow(2).mean(-1, keepdim=True).sqrt().softmax(-2)
    return (windows * weights).sum(-2).flatten(1, 2)


@pytest.mark.parametrize("pooling", ["the model's own", "st-gridpool"])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_model_answers_every_question_about_the_sample_clips(model, tokenizer, preprocessor, monkeypatch, name, pooling):
    if pooling == "st-gridpool":
        monkeypatch.setattr(model.model, "apply_pooling", pool_with_st_gridpool)
    pixel_values, clip = load_clip(CLIPS / f"{name}.mp4", 16, preprocessor)
    assert clip.total == 16 * HOLD and clip.size == (336, 336) and clip.repeated == 0
    sample = json.loads((CLIPS / f"{name}.json").read_text())
    answers = {q["question"]: answer(model, tokenizer, pixel_values, q["question"]) for q in sample["questions"]}
    assert answers == {q["question"]: q["answer"] for q in sample["questions"]}


def test_the_model_answers_about_clips_that_nobody_picked(model, tokenizer, preprocessor):
    right = []
    for seed in range(1000, 1012):
        clip = make_clip(np.random.default_rng(seed))
        pixel_values = preprocessor.normalise(clip.frames)
        right += [answer(model, tokenizer, pixel_values, q.question) == q.answer for q in clip.questions]
    assert len(right) >= 100
    assert np.mean(right) >= 0.97


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_clip_is_what_its_seed_generates(name):
    sample = json.loads((CLIPS / f"{name}.json").read_text())
    clip = make_clip(np.random.default_rng(sample["seed"]))
    assert sample["clip"] == f"{name}.mp4"
    assert [q._asdict() for q in clip.questions] == sample["questions"]
    decoded = sample_frames(CLIPS / f"{name}.mp4", 16, lambda frame: frame[1::3, 1::3])
    assert np.abs(decoded.frames.astype(int) - clip.frames).mean() < 6


def test_a_clip_survives_its_file_frame_by_frame(tmp_path):
    clip = write_demo_clip(tmp_path / "clip.mp4", ClipOptions(seed=3, frames=12, scale=2))
    decoded = sample_frames(tmp_path / "clip.mp4", 12, lambda frame: frame[::2, ::2])
    assert decoded.indices == tuple(range(0, 12 * HOLD, HOLD))
    distance = np.abs(decoded.frames[:, None].astype(int) - clip.frames[None]).mean((2, 3, 4))
    assert distance.diagonal().max() < 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_same_seed_gives_the_same_clip_and_another_another():
    one, same, other = (make_clip(np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.frames, same.frames)
    assert one.questions == same.questions
    assert not np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (16, 112, 112, 3) and one.frames.dtype == np.uint8


def test_questions_are_of_the_known_kinds_without_an_answer_that_dominates(tokenizer):
    answers: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for seed in range(150):
        for q in make_clip(np.random.default_rng(seed)).questions:
            answers[q.kind][q.answer] += 1
            assert tokenizer.unk_token_id not in tokenizer(f"{q.question} {q.answer}").input_ids
    assert set(answers["color"]) == set(answers["flash"]) == set(answers["change"]) == set(COLORS)
    assert set(answers["shape"]) == set(SHAPES)
    assert set(answers["letter"]) == set(LETTERS)
    assert set(answers["direction"]) == set(DIRECTIONS)
    assert set(answers["count"]) == set(NUMBERS[1:])
    for kind, counts in answers.items():
        assert max(counts.values()) / counts.total() < 0.5, kind


def test_colors_and_directions_in_the_answers_are_those_in_the_pixels():
    checked = Counter()
    for seed in range(200):
        clip = make_clip(np.random.default_rng(seed))
        asked = {q.question: q.answer for q in clip.questions}
        if "which letter is shown ?" in asked or "what color is the flash ?" in asked:
            continue  # they may hide an object
        for question, color in asked.items():
            shape = question.removeprefix("what color is the ").removesuffix(" ?")
            direction = asked.get(f"which way does the {shape} move ?")
            if shape not in SHAPES or direction is None:
                continue
            near = np.abs(clip.frames.astype(int) - COLORS[color]).max(-1) < 40
            shown = near.sum((1, 2)) > 100
            assert shown[-1], (seed, question)
            centers = [np.argwhere(frame).mean(0)[::-1] for frame in near[shown]]
            moved = np.sign(np.rint((centers[-1] - centers[0]) / 20))
            assert tuple(moved) == DIRECTIONS[direction], (seed, question)
            checked[direction] += 1
    assert len(checked) == len(DIRECTIONS)


def test_the_checkpoints_preprocessor_config_is_one_that_transformers_reads():
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    assert (processor.size["height"], processor.size["width"]) == (112, 112)
    assert type(processor).__name__ == "LlavaOnevisionImageProcessorPil"
    video = json.loads((CHECKPOINT / "video_preprocessor_config.json").read_text())
    assert video["num_frames"] == 16
    for key in ("size", "resample", "rescale_factor", "image_mean", "image_std"):
        assert video[key] == json.loads((CHECKPOINT / "preprocessor_config.json").read_text())[key]


def test_the_command_prints_what_can_be_asked(tmp_path, capsys):
    path = tmp_path / "new" / "clip.mp4"
    assert main(["clip", "--seed", "17", "-o", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    clip = make_clip(np.random.default_rng(17))
    assert [line.rsplit(maxsplit=1) for line in lines] == [[q.question, q.answer] for q in clip.questions]
    assert main(["clip", "--seed", "17", "-o", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((CLIPS / "flash.json").read_text()) | {"clip": "clip.mp4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "seed -1; expected 0 or more"),
        (["--frames", "7"], "7 frames; expected 8"),
        (["--scale", "0"], "scale 0; expected 1 to 16"),
    ],
)
def test_options_out_of_range_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert main(["clip", "-o", str(tmp_path / "clip.mp4"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a directory"):
        write_demo_clip(tmp_path)
    with pytest.raises(ExportError, match="is not a directory"):
        write_demo_clip(tmp_path / "file" / "clip.mp4")
