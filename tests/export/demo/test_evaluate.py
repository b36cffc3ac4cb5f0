"""`python -m export.demo evaluate`: its counts are the model's, and the bundle answers about video files as torch does about tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from refusal import naming, refused
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from export.demo import CHECKPOINT
from export.demo.__main__ import main
from export.demo.evaluate import EvaluateOptions, clips_of, evaluate
from export.scenes.questions import KINDS
from runtime.core.errors import ExportError


def test_the_shipped_checkpoint_answers_with_the_default_preset(capsys):
    assert main(["evaluate", "--seed", "11", "--clips", "40", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert len(lines) == 1
    assert result["accuracy"] >= 0.90
    assert (result["clips"], result["seed"], result["split"], result["tokens_per_clip"]) == (40, 11, "test", 256)
    assert result["compress"].startswith("ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2")
    assert result["questions"] == sum(values["questions"] for values in result["kinds"].values())
    assert set(result["kinds"]) <= set(KINDS)
    right = sum(values["accuracy"] * values["questions"] for values in result["kinds"].values())
    assert right / result["questions"] == pytest.approx(result["accuracy"], abs=1e-3)


def test_the_counts_are_those_of_transformers_generate():
    """With the family's own compression the library needs none of this package's code."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    right = []
    for clip in clips_of("test", 5, 4):
        pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        for question in clip.questions:
            message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.question}]}]
            text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text.replace("<video>", "<video>" * (16 * 25 + 1)), return_tensors="pt").input_ids
            with torch.no_grad():
                out = model.generate(input_ids=ids, pixel_values_videos=pixels[None], max_new_tokens=1, do_sample=False)
            right.append(tokenizer.decode(out[0, -1:]).strip() == question.answer)
    result = evaluate(EvaluateOptions(seed=5, clips=4, compress="llava-ov"))
    assert result["questions"] == len(right)
    assert result["accuracy"] == pytest.approx(np.mean(right), abs=1e-4)


def test_more_clips_begin_with_the_same_ones():
    few = [clip.scene.look for clip in clips_of("test", 2, 2)]
    assert [clip.scene.look for clip in clips_of("test", 2, 4)][:2] == few
    assert [clip.scene.look for clip in clips_of("validation", 2, 2)] != few


def test_a_bundle_answers_from_files_of_several_sizes_and_rates(bundle_path):
    result = evaluate(EvaluateOptions(seed=21, clips=6, bundle=bundle_path))
    torch_result = evaluate(EvaluateOptions(seed=21, clips=6))
    assert result["compress"] == torch_result["compress"] and result["tokens_per_clip"] == 256
    assert result["questions"] == torch_result["questions"]
    assert abs(result["accuracy"] - torch_result["accuracy"]) <= 0.05


@pytest.mark.slow
def test_video_files_and_the_exported_bundle_cost_no_accuracy(bundle_path):
    """H.264 at three sizes and four rates, ONNX Runtime, one prompt each, against torch on the frames themselves."""
    by_files = evaluate(EvaluateOptions(seed=1, clips=200, bundle=bundle_path))
    by_torch = evaluate(EvaluateOptions(seed=1, clips=200))
    assert by_files["questions"] == by_torch["questions"] > 1500
    assert abs(by_files["accuracy"] - by_torch["accuracy"]) <= 0.005


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--seed", "-1", ["--seed", 0]),
        ("--clips", "0", ["--clips", 1]),
        ("--split", "dev", ["train", "validation", "test"]),
        ("--checkpoint", "nowhere", ["config.json"]),
        ("--compress", "nsq", ["nsp"]),
        ("--bundle", "nowhere", []),
    ],
)
def test_what_can_not_be_evaluated_is_one_line_and_exit_code_2(capsys, option, value, named):
    assert naming(value, *named).match(refused(capsys, main, "evaluate", option, value))


@pytest.mark.parametrize(("option", "value", "named"), [("seed", -1, [0]), ("clips", 0, [1]), ("split", "dev", ["validation"])])
def test_options_out_of_range_are_refused_in_python_too(option, value, named):
    with pytest.raises(ExportError, match=naming(option, value, *named)):
        EvaluateOptions(**{option: value})
