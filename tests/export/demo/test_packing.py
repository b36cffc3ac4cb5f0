"""Many questions in one pass give the logits of one prompt each, through the library's own attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from export.demo import CHECKPOINT
from export.demo.packing import LENGTH, answer_logits, pack, use_blocked_attention
from export.demo.tiny import encoded, make_tokenizer, project
from export.scenes.draw import make_clip
from export.scenes.make import make_scene
from export.scenes.questions import questions
from export.scenes.scene import clip_rng


@pytest.fixture(scope="module")
def clips():
    return [make_clip(clip_rng("validation", 3, index), 8) for index in range(2)]


@pytest.fixture(scope="module")
def models():
    """The library's own attention, and the blocked one."""
    own, blocked = (LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval() for _ in "ab")
    use_blocked_attention(blocked)
    return own, blocked


def test_packed_answers_are_those_of_single_prompts(models, clips):
    own, blocked = models
    tokenizer = make_tokenizer()
    with torch.inference_mode():
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        visual = project(blocked, encoded(blocked, frames)).flatten(1, 3)[:, ::5]
        asked = [clip.questions for clip in clips]
        logits, targets = answer_logits(blocked, visual, pack(asked, max(map(len, asked))))
        expected = []
        for clip, tokens in zip(clips, project(own, encoded(own, frames)).flatten(1, 3)[:, ::5], strict=True):
            for question in clip.questions:
                message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.question}]}]
                text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
                before, after = text.split("<video>")
                ids = [tokenizer(part, return_tensors="pt").input_ids for part in (before, after + question.answer)]
                parts = [own.get_input_embeddings()(part)[0] for part in ids]
                prompt = torch.cat([parts[0], tokens, own.model.image_newline[None], parts[1]])
                out = own.model.language_model(inputs_embeds=prompt[None]).last_hidden_state
                expected.append(own.lm_head(out)[0, -2:])
    torch.testing.assert_close(logits, torch.cat(expected), atol=2e-4, rtol=2e-4)
    words = tokenizer.convert_ids_to_tokens(targets.tolist())
    assert words == [word for clip in clips for question in clip.questions for word in (question.answer, "<|im_end|>")]


def test_every_question_fits_the_packed_length():
    longest = 0
    for seed in range(300):
        rng = clip_rng("train", seed)
        for question in questions(rng, make_scene(rng)):
            longest = max(longest, len(question.question.split()) + 5)
    assert longest - 1 <= LENGTH
