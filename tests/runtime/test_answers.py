"""Answers end to end: with the family's own compression they are transformers' greedy ids, and the shipped clips are understood."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.demo import CHECKPOINT, CLIPS
from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.bundle import Bundle
from runtime.chat import Answer, AskOptions, VideoChat
from runtime.core.errors import PromptError
from runtime.llm.decoder import LocalDecoder
from runtime.media.preprocess import Preprocessor, load_clip


@pytest.fixture(scope="module")
def chat(bundle) -> VideoChat:
    return VideoChat.open(bundle, "onnx")


def _questions() -> list[tuple[str, str, str]]:
    found = []
    for facts in sorted(CLIPS.glob("*.json")):
        values = json.loads(facts.read_text())
        found += [(values["clip"], qa["question"], qa["answer"]) for qa in values["questions"]]
    return found


@pytest.mark.parametrize(("clip_name", "question", "expected"), _questions())
def test_shipped_clips_are_answered_with_compressed_tokens(chat, clip_name, question, expected):
    assert "".join(chat.ask(CLIPS / clip_name, question)).strip() == expected
    assert chat.answer.visual_tokens == 257 and chat.answer.patch_tokens == 1296


@pytest.fixture(scope="module")
def own_compression(tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("own") / "b"
    return export_bundle(ExportOptions(out=str(out), compress="llava-ov")).bundle


@pytest.mark.parametrize("penalty", [1.0, pytest.param(1.3, marks=pytest.mark.slow)])
def test_ids_equal_transformers_generate_with_the_familys_own_compression(own_compression, penalty):
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    manifest = own_compression.manifest
    bundle = Bundle(own_compression.path, replace(manifest, prompt=replace(manifest.prompt, repetition_penalty=penalty)))
    chat = VideoChat.open(bundle, "onnx")
    hf = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for clip_name, question, _ in _questions():
        pixels, _ = load_clip(CLIPS / clip_name, manifest.frames, Preprocessor(manifest.preprocessing))
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        encoded = tokenizer(text.replace("<video>", "<video>" * manifest.tokens_per_clip), return_tensors="pt")
        with torch.inference_mode():
            generated = hf.generate(
                **{name: encoded[name] for name in ("input_ids", "attention_mask")},
                pixel_values_videos=torch.from_numpy(pixels)[None],
                max_new_tokens=8,
                do_sample=False,
                repetition_penalty=penalty,
            )
        expected = [token for token in generated[0, encoded["input_ids"].shape[1] :].tolist() if token != tokenizer.eos_token_id]
        list(chat.ask(CLIPS / clip_name, question, AskOptions(max_new_tokens=8)))
        assert chat.answer.ids == expected, question


def test_an_answer_is_json_with_its_ratio_and_speed():
    counts = {"patch_tokens": 0, "visual_tokens": 0, "prompt_tokens": 0, "repeated_frames": 0}
    nothing = {"text": "", "ids": [], "frames": [], "seconds": {}, "compression": 0}
    assert Answer().as_dict() == counts | nothing  # before any question
    answer = Answer("a cat", [5, 6, 7], 1296, 257, 267, [0, 9], 1, ["for people"], {"decode": 0.5})
    assert answer.as_dict() == {
        "text": "a cat", "ids": [5, 6, 7], "patch_tokens": 1296, "visual_tokens": 257, "prompt_tokens": 267, "frames": [0, 9],
        "repeated_frames": 1, "seconds": {"decode": 0.5}, "compression": 5.04, "decode_tokens_per_second": 4.0,
    }  # fmt: skip
    assert "decode_tokens_per_second" not in Answer(ids=[5], seconds={"decode": 0.5}).as_dict()


def test_chunks_of_any_size_give_the_same_logits(bundle):
    decoder = LocalDecoder.open(bundle, "onnx")
    embeddings = np.random.default_rng(0).normal(0, 0.1, (1, 70, bundle.manifest.hidden_size)).astype(np.float32)
    expected = decoder.conversation().extend(embeddings)
    for chunk in (1, 16, 69):
        np.testing.assert_allclose(decoder.conversation().extend(embeddings, chunk=chunk), expected, atol=2e-4)


def test_conversations_do_not_share_their_caches(bundle):
    decoder = LocalDecoder.open(bundle, "onnx")
    rng = np.random.default_rng(0)
    first, second = (rng.normal(0, 0.1, (1, 20, bundle.manifest.hidden_size)).astype(np.float32) for _ in range(2))
    alone = decoder.conversation().extend(first)
    one, other = decoder.conversation(), decoder.conversation()
    one.extend(first[:, :10])
    other.extend(second)
    np.testing.assert_allclose(one.extend(first[:, 10:]), alone, atol=2e-4)


def test_a_conversation_takes_what_the_cache_has_room_for(bundle):
    decoder = LocalDecoder.open(bundle, "onnx")
    conversation = decoder.conversation()
    conversation.extend(np.zeros((1, decoder.max_context - 1, bundle.manifest.hidden_size), np.float32))
    token = np.zeros((1, 1, bundle.manifest.hidden_size), np.float32)
    conversation.extend(token)
    assert conversation.length == decoder.max_context
    with pytest.raises(PromptError, match=f"{decoder.max_context + 1} .* {decoder.max_context}"):
        conversation.extend(token)
