"""A bundle's prompt against transformers' chat template and tokenizer, and the embeddings with visual tokens in their places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from manifests import bundle_of
from transformers import AutoTokenizer

from export.demo import CHECKPOINT
from runtime.bundle import Bundle
from runtime.bundle.manifest import PromptInfo
from runtime.core.errors import PromptError
from runtime.prompt import Prompt, PromptIds


def test_ids_equal_transformers_with_the_video_token_expanded(bundle):
    hf = AutoTokenizer.from_pretrained(CHECKPOINT)
    question = "which shape appears last ?"
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    text = hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = hf(text.replace("<video>", "<video>" * 5)).input_ids
    ids = Prompt(bundle).ids(question)
    assert [*ids.before, *[Prompt(bundle).video_token_id] * 5, *ids.after] == expected


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_questions_are_refused(bundle, question):
    with pytest.raises(PromptError):
        Prompt(bundle).ids(question)


def test_visual_tokens_are_where_the_template_puts_the_video(bundle):
    prompt = Prompt(bundle)
    ids = prompt.ids("how many objects are there ?")
    visual = np.full((3, 128), 7, np.float32)
    embedded = prompt.embed(ids, visual)
    at = len(ids.before)
    assert embedded.shape == (1, len(ids) + 3, 128) == (1, ids.positions(3), 128)
    np.testing.assert_array_equal(embedded[0, at : at + 3], visual)
    np.testing.assert_array_equal(embedded[0, :at], prompt.embeddings[ids.before])
    np.testing.assert_array_equal(embedded[0, at + 3 :], prompt.embeddings[ids.after])


def test_several_clips_are_embedded_between_their_texts(tmp_path):
    class Table:
        """Embeddings [n, 2] float16: an id and its double."""

        dtype = np.dtype(np.float16)

        def __getitem__(self, ids: list[int]) -> np.ndarray:
            return np.array([[token, 2 * token] for token in ids], np.float16).reshape(-1, 2)

    prompt = Prompt(_bundle(tmp_path))
    prompt.__dict__["embeddings"] = Table()
    clips = np.ones((2, 2), np.float32), np.zeros((1, 2), np.float16)
    got = prompt.embed(PromptIds(([1], [], [2, 3])), *clips)
    assert got.tolist() == [[[1, 2], [1, 1], [1, 1], [0, 0], [2, 4], [3, 6]]] and got.dtype == np.float16
    assert prompt.embed(PromptIds(([4, 5],))).tolist() == [[[4, 8], [5, 10]]]
    with pytest.raises(ValueError):
        prompt.embed(PromptIds(([1], [2])), *clips)


def _bundle(folder: Path, template: bytes = b"<video>") -> Bundle:
    (folder / "llm").mkdir()
    (folder / "llm" / "template").write_bytes(template)
    return bundle_of("llm/template", "llm/tokenizer.json", path=folder, prompt=PromptInfo("template", "<video>", 4, (2, 5)))


def test_a_bundle_without_a_repetition_penalty_has_none(tmp_path):
    prompt = Prompt(_bundle(tmp_path, "<video> ü".encode()))
    assert (prompt.repetition_penalty, prompt.eos, prompt.template.text) == (1.0, {2, 5}, "<video> ü")
    assert prompt.tokenizer.path == tmp_path / "llm" / "tokenizer.json"
    paying = replace(prompt.bundle.manifest, prompt=replace(prompt.bundle.prompt, repetition_penalty=1.5))
    assert Prompt(Bundle(tmp_path, paying)).repetition_penalty == 1.5


def test_a_template_that_is_not_text_is_refused_in_one_line(tmp_path):
    with pytest.raises(PromptError, match=r"^[^\n]*UnicodeDecodeError[^\n]*$"):
        Prompt(_bundle(tmp_path, b"\xff"))
