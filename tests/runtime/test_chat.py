"""A question on stand-ins for the models: what is refused before weights are read, and what an answer reports."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import chat as pipeline
from runtime.chat import Answer, AskOptions, VideoChat
from runtime.core.errors import ContextError, PromptError, VideoError
from runtime.engine import EngineOptions
from runtime.llm.sampling import Sampling
from runtime.prompt import PromptIds

IDS = PromptIds(([1, 2], [3]))


def bundle(max_context: int = 8) -> SimpleNamespace:
    manifest = SimpleNamespace(tokens_per_clip=5, patch_tokens=40)
    return SimpleNamespace(manifest=manifest, max_context=max_context)


@pytest.fixture
def clip(tmp_path) -> Path:
    (tmp_path / "clip.mp4").write_bytes(b"a")
    return tmp_path / "clip.mp4"


class Prompt:
    """Every token's embedding is its id, twice; its text a word, and 7 none. 2 ends an answer, 4 stands for the clip."""

    def __init__(self, of: SimpleNamespace):
        self.bundle, self.eos, self.repetition_penalty, self.tokenizer = of, frozenset({2}), 1.5, self
        self.embeddings, self.video_token_id = np.repeat(np.arange(10.0)[:, None], 2, 1), 4

    def ids(self, question: str) -> PromptIds:
        assert question == "what ?"
        return IDS

    def embed(self, ids: PromptIds, visual: np.ndarray) -> np.ndarray:
        assert ids is IDS
        return np.concatenate([self.embeddings[ids.before], visual, self.embeddings[ids.after]])[None]

    def decode(self, ids: list[int]) -> str:
        return "".join({7: "", 8: "eight ", 9: "nine"}[token] for token in ids)


class Decoder:
    """Logits choose `ids` in turn; runs: the embeddings of each."""

    max_context = 20

    def __init__(self, *ids: int):
        self.ids, self.runs, self.length = ids, [], 0

    def conversation(self) -> Decoder:
        return self

    def extend(self, embeddings: np.ndarray) -> np.ndarray:
        self.runs.append(embeddings[0, :, 0].tolist())
        self.length += embeddings.shape[1]
        return np.eye(10)[self.ids[len(self.runs) - 1]]


class Vision:
    def encode(self, video: Path) -> SimpleNamespace:
        assert video.name == "clip.mp4"
        clip = SimpleNamespace(indices=(0, 9), repeated=1, notes=["for people"])
        return SimpleNamespace(tokens=np.full((4, 2), 6.0), clip=clip, seconds={"decode_video": 1.0, "encode": 2.5})


class Asked(Sampling):
    """Greedy sampling that expects the ids of the prompt, the clip's among them, and the penalty."""

    def chooser(self, seen, penalty):
        assert (set(seen), penalty) == ({1, 2, 3, 4}, 1.5)
        return super().chooser()


@pytest.fixture
def timed(monkeypatch):
    """Looking at the clock takes a second."""
    ticks = iter(range(5, 100))
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


@pytest.mark.parametrize("again", [False, True])
def test_an_answer_is_streamed_with_its_counts_and_times(clip, timed, again):
    chat = VideoChat(Prompt(bundle()), Vision(), decoder := Decoder(8, 7, 9, 2))
    assert chat.answer == Answer()
    options = AskOptions(sampling=Asked())
    stream = chat.ask_about(Vision().encode(clip), "what ?", options) if again else chat.ask(clip, "what ?", options)
    answer = chat.answer
    assert (answer.text, answer.ids) == ("", []) and answer.notes == ["for people"]
    assert answer.seconds == {"decode_video": 1, "encode": 2.5, "prefill": 1, "time_to_first_token": 4.5}
    assert list(stream) == ["eight ", "nine"] and decoder.runs == [[1, 2, 6, 6, 6, 6, 3], [8], [7], [9]]
    assert answer.as_dict() == {
        "text": "eight nine", "ids": [8, 7, 9], "patch_tokens": 40, "visual_tokens": 4, "prompt_tokens": 7, "frames": [0, 9],
        "repeated_frames": 1, "compression": 10.0, "decode_tokens_per_second": 0.67,
        "seconds": {"decode_video": 1, "encode": 2.5, "prefill": 1, "time_to_first_token": 4.5, "decode": 3},
    }  # fmt: skip


def test_what_was_held_back_comes_at_the_end_and_an_answer_may_be_empty(clip, monkeypatch):
    texts = {(8,): "\ufffd", (8, 9): "\ufffd"}
    monkeypatch.setattr(Prompt, "decode", lambda self, ids: texts.get(tuple(ids), ""))
    for ids, pieces in (((8, 9), ["\ufffd"]), ((), [])):
        chat = VideoChat(Prompt(bundle()), Vision(), Decoder(*ids, 2))
        assert list(chat.ask(clip, "what ?", AskOptions(sampling=Asked()))) == pieces
        assert (chat.answer.text, chat.answer.ids) == ("".join(pieces), list(ids))


@pytest.mark.parametrize(
    ("limit", "max_context", "ids", "runs"),
    [
        (1, 20, [8], 1),  # the last id is not fed back
        (2, 20, [8, 9], 2),
        (3, 20, [8, 9, 7], 3),
        (4, 20, [8, 9, 7], 4),  # 2 ends it
        (9, 20, [8, 9, 7], 4),
        (9, 7, [8], 1),  # seven of the prompt fill the cache
        (9, 8, [8, 9], 2),
    ],
)
def test_an_answer_ends_at_its_limit_an_end_token_or_with_the_cache(clip, limit, max_context, ids, runs):
    chat = VideoChat(Prompt(bundle()), Vision(), decoder := Decoder(8, 9, 7, 2))
    decoder.max_context = max_context
    text = "".join(chat.ask(clip, "what ?", AskOptions(limit, Asked())))
    assert text == chat.answer.text == chat.prompt.decode(ids)
    assert chat.answer.ids == ids and [run[0] for run in decoder.runs[1:]] == ids[: runs - 1] and len(decoder.runs) == runs


def test_how_long_an_answer_may_be():
    assert AskOptions() == AskOptions(128, Sampling()) and AskOptions(1).max_new_tokens == 1
    with pytest.raises(PromptError, match="max_new_tokens"):
        AskOptions(0)


def test_a_question_is_refused_before_its_clip_is_read(clip, tmp_path):
    assert VideoChat.check(Prompt(bundle(8)), clip, "what ?") is IDS
    assert VideoChat.check(Prompt(bundle(8)), str(clip), "what ?") is IDS
    with pytest.raises(ContextError, match=r"8 .* 7"):
        VideoChat.check(Prompt(bundle(7)), tmp_path / "none", "what ?")
    with pytest.raises(VideoError, match="no such file"):
        VideoChat.check(Prompt(bundle()), tmp_path / "none", "what ?")


class TestOpening:
    @pytest.fixture
    def opened(self, monkeypatch) -> list[tuple]:
        opened: list[tuple] = []
        for name in ("VisionEncoder", "LocalDecoder"):
            stand_in = SimpleNamespace(open=lambda *arguments, name=name: opened.append((name, *arguments)) or name)
            monkeypatch.setattr(pipeline, name, stand_in)
        monkeypatch.setattr(pipeline, "Prompt", lambda of: opened.append(("Prompt", of)) or Prompt(of))
        return opened

    def test_vision_encoder_and_llm_are_loaded_where_they_are_asked_to_run(self, opened):
        of, options = bundle(6), EngineOptions(threads=2)
        chat = VideoChat.open(of, "onnx", options)
        assert opened == [("Prompt", of), ("VisionEncoder", of, "onnx", options), ("LocalDecoder", of, "onnx", options)]
        assert (chat.vision, chat.decoder, chat.bundle) == ("VisionEncoder", "LocalDecoder", of)

    def test_a_prompt_that_is_there_is_not_read_again(self, opened):
        prompt = Prompt(bundle(6))
        assert VideoChat.open(prompt.bundle, prompt=prompt).prompt is prompt
        assert opened == [(name, prompt.bundle, "auto", EngineOptions()) for name in ("VisionEncoder", "LocalDecoder")]

    def test_a_clip_that_leaves_no_room_for_a_question_is_refused_first(self, opened):
        with pytest.raises(ContextError, match=r"6 .* 5"):
            VideoChat.open(bundle(5))
        assert not opened


@pytest.mark.parametrize(
    ("patches", "visual", "compression"), [(0, 0, 0), (3, 0, 3), (3, 1, 3), (3, 2, 1.5), (7, 3, 2.33), (1, 800, 0), (1, 199, 0.01)]
)
def test_compression_is_a_ratio_of_two_digits(patches, visual, compression):
    values = Answer(patch_tokens=patches, visual_tokens=visual).as_dict()
    assert values["compression"] == compression and "decode_tokens_per_second" not in values


@pytest.mark.parametrize(("ids", "speed"), [([], None), ([5], None), ([5, 6], 0.33), ([5] * 10, 3.0)])
def test_speed_is_that_of_the_tokens_after_the_first(ids, speed):
    assert Answer(ids=ids, seconds={"decode": 3.0}).as_dict().get("decode_tokens_per_second") == speed
