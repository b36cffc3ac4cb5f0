"""What is planned from a checkpoint's descriptions and the options, without a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import naming

from export import plan as plans
from export.checkpoint import open_checkpoint
from export.families import family
from export.families.chat import Chat
from export.options import ExportOptions
from export.plan import _max_context, make_plan
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import BundleError, CheckpointError, ExportError, PromptError

CHAT = Chat("{{ text }}", "template.json", "<video>", 4, [2], None)
PREPROCESSING = Preprocessing((126, 126), "bicubic", 1 / 255, 0.5, 0.5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of the clips and of the weight files."""
    asked: list[tuple[Any, ...]] = []

    class Clips:
        def __init__(self, preprocessing: Preprocessing, directory: str):
            asked.append((preprocessing, directory))

        def check(self, frames: int) -> None:
            asked.append(("check", frames))

    monkeypatch.setattr("export.quantize.clips.Clips", Clips)
    monkeypatch.setattr("export.frames.FrameInput", lambda preprocessing, size: (preprocessing, size))
    monkeypatch.setattr(
        plans,
        "check_prompt",
        lambda checkpoint, llm, published: (range(2000 if llm.chat and published == "hub" else 0), ["a", "b"]),
    )
    monkeypatch.setattr(plans, "_log_settings", lambda checkpoint, chat: ["min_new_tokens"])
    return asked


def plan(seen: list[tuple[Any, ...]], frames: int = 8, options: dict[str, Any] | None = None) -> plans.Plan:
    vision = SimpleNamespace(grid=(9, 6), frames=frames, preprocessing=PREPROCESSING, closing_tokens=1)
    llm = SimpleNamespace(chat=CHAT, max_positions=4096, vocabulary=66)
    kind = SimpleNamespace(
        COMPRESS="avgpool:window=3",
        HUB_ID="hub",
        describe_vision=lambda checkpoint: vision,
        describe_llm=lambda checkpoint: llm,
        check_vision_weights=lambda checkpoint: seen.append("vision weights"),
        check_llm_weights=lambda checkpoint: seen.append("llm weights"),
    )
    return make_plan(ExportOptions(**options or {}), kind, SimpleNamespace(path=Path("checkpoint")))


def test_a_plan_counts_tokens_of_the_checkpoints_frames_and_of_those_asked_for(seen: list[tuple[Any, ...]]) -> None:
    planned = plan(seen)
    assert (planned.preset, planned.frames, planned.tokens) == ("avgpool:window=3", 8, 8 * 3 * 2 + 1)
    assert planned.llm.max_context == 2304 and planned.input is None and planned.not_applied == ["min_new_tokens"]
    assert seen == ["vision weights", "llm weights"] and planned.vision.grid == (9, 6)
    planned = plan(seen, 3000, options={"frames": 3, "compress": "avgpool:window=2", "max_context": 2100})
    assert (planned.preset, planned.frames, planned.tokens) == (
        "avgpool:window=2",
        3,
        3 * 4 * 3 + 1,
    )  # what is left over at an edge of 9 is left out
    assert planned.llm.max_context == 2100


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({"calibrate": "clips", "precision": "int8"}, [(PREPROCESSING, "clips"), ("check", 8)]),
        ({"calibrate": "clips", "precision": "int8", "input": "frames"}, [(replace(PREPROCESSING, frames=(126, 126)), "clips"), ("check", 8)]),
        ({"calibrate": "clips", "llm_precision": "int4", "input": "frames:40x60"}, [(replace(PREPROCESSING, frames=(40, 60)), "clips"), ("check", 8)]),
        ({"calibrate": "clips"}, []),
        ({"precision": "int8"}, []),
    ],
)  # fmt: skip
def test_the_users_clips_are_looked_into_where_they_calibrate(seen, options, checked) -> None:
    plan(seen, options=options)
    assert seen == [*checked, "vision weights", "llm weights"]


@pytest.mark.parametrize(
    ("only", "context", "not_applied"), [(None, 2304, ["min_new_tokens"]), ("vision", None, []), ("llm", 2304, ["min_new_tokens"])]
)
def test_without_an_llm_there_is_no_context(seen, only, context, not_applied) -> None:
    planned = plan(seen, options={"only": only})
    assert (planned.llm and planned.llm.max_context, planned.not_applied) == (context, not_applied)


@pytest.mark.parametrize(("text", "size"), [("frames", (126, 126)), ("frames:40x60", (40, 60))])
def test_frames_are_taken_in_the_size_asked_for(seen, text: str, size: tuple[int, int]) -> None:
    planned = plan(seen, options={"input": text})
    assert planned.input == (PREPROCESSING, size) and planned.preprocessing == replace(PREPROCESSING, frames=size)


@pytest.mark.parametrize(
    ("frames", "options", "named"),
    [
        (1025, {}, ["checkpoint", "num_frames", 1025, 1024, "--frames"]),
        (1, {"split": True}, ["--split", "1 frame", "--frames 2"]),
        (1, {"precision": "int8"}, ["--precision int8", "1 frame", "--frames 2"]),
    ],
)
def test_frames_of_the_checkpoint_that_do_not_do(seen, frames: int, options: dict[str, Any], named: list[Any]) -> None:
    with pytest.raises(ExportError, match=naming(*named)):
        plan(seen, frames, options)
    assert plan(seen, frames, options | {"frames": 2}).frames == 2


@pytest.mark.parametrize(("frames", "options"), [(1, {}), (2, {"split": True}), (1, {"precision": "int8", "only": "llm"})])
def test_frames_of_the_checkpoint_that_do(seen, frames: int, options: dict[str, Any]) -> None:
    assert plan(seen, frames, options).frames == frames


def check(monkeypatch, vocabulary, refusal=("", None), **config) -> Any:
    """refusal: which step fails, and how."""

    def step(name: str, value: Any = None) -> Any:
        if refusal[0] == name:
            raise refusal[1]
        return value

    class Tokenizer:
        def __init__(self, path: Path):
            assert path == Path("checkpoint/tokenizer.json")
            self.path = path

        @property
        def vocabulary(self) -> dict[str, int]:
            return step("tokenizer", vocabulary)

    class Template:
        def __init__(self, text: str):
            assert text == "{{ text }}"

        def render(self, messages) -> None:
            step("render")

        def prefix_and_suffix(self) -> tuple[str, str]:
            return step("around", ("before", "after"))

    def prompt_ids(tokenizer, template, video_token_id, messages) -> list[int]:
        assert (type(tokenizer), type(template), video_token_id) == (Tokenizer, Template, CHAT.video_token_id)
        assert messages[0]["content"][1]["text"] == "What happens in the video?"
        return step("ids", [5] * 7)

    monkeypatch.setattr(plans, "Tokenizer", Tokenizer)
    monkeypatch.setattr(plans, "ChatTemplate", Template)
    monkeypatch.setattr(plans, "prompt_ids", prompt_ids)
    llm = SimpleNamespace(chat=CHAT, max_positions=4096, vocabulary=10)
    return plans.check_prompt(SimpleNamespace(path=Path("checkpoint"), config=lambda: config), llm, "somebody/published")


def test_a_prompts_tokens_are_counted(monkeypatch) -> None:
    assert check(monkeypatch, {"a": 0, "z": 9}) == ([5] * 7, ("before", "after"))


@pytest.mark.parametrize("key", ["image_token_id", "image_token_index", "video_token_id", "video_token_index"])
def test_a_token_that_stands_for_a_clip_needs_no_embedding(monkeypatch, key) -> None:
    assert check(monkeypatch, {"a": 9, "<video>": 12}, **{key: 12}) == ([5] * 7, ("before", "after"))
    with pytest.raises(CheckpointError, match='has "<video>" as token 12'):
        check(monkeypatch, {"a": 9, "<video>": 12}, **{key: 11, "other_id": 12})


def test_the_last_token_without_an_embedding_is_named(monkeypatch) -> None:
    with pytest.raises(CheckpointError, match=naming("checkpoint/tokenizer.json", '"b"', "token 12", 10, "vocab_size")):
        check(monkeypatch, {"a": 9, "c": 10, "b": 12, "z": 11})
    with pytest.raises(CheckpointError, match=naming("checkpoint/tokenizer.json", '"c"', "token 10")):
        check(monkeypatch, {"a": 9, "c": 10})


@pytest.mark.parametrize(
    ("step", "error", "named"),
    [
        ("tokenizer", BundleError("t is not a tokenizer"), ["t is not a tokenizer"]),
        ("render", PromptError("it refuses"), ["checkpoint/template.json", "it refuses"]),
        ("around", PromptError("it refuses"), ["checkpoint/template.json", "it refuses"]),
        ("ids", PromptError("no clip"), ["checkpoint/template.json", "no clip", "<video>", "somebody/published"]),
    ],
)
def test_a_prompt_that_can_not_be_made_is_the_checkpoints_fault(monkeypatch, step, error, named) -> None:
    with pytest.raises(CheckpointError, match=naming(*named)):
        check(monkeypatch, {"a": 0}, (step, error))


@pytest.mark.parametrize(
    ("penalty", "names", "said"),
    [
        (None, [], []),
        (1.25, [], ["checkpoint/generation_config.json: repetition_penalty 1.25 goes into the bundle"]),
        (None, ["a", "b"], ["warning: checkpoint/generation_config.json sets a, b, which the runtime does not apply: its answers can differ "
                         "from those of transformers' generate"]),
    ],
)  # fmt: skip
def test_settings_are_told_where_there_are_some(monkeypatch, capsys, penalty, names, said) -> None:
    monkeypatch.setattr(plans, "settings_not_applied", lambda checkpoint: names)
    chat = Chat("{{ text }}", "template.json", "<video>", 4, [2], penalty)
    assert plans._log_settings(SimpleNamespace(path=Path("checkpoint")), chat) == names
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize(("only", "checked"), [(None, ["vision", "llm"]), ("vision", ["vision"]), ("llm", ["llm"])])
def test_weights_of_a_component_that_is_left_out_are_not_read(only: str | None, checked: list[str]) -> None:
    seen: list[str] = []
    checks = {f"check_{name}_weights": lambda checkpoint, name=name: seen.append(name) for name in ("vision", "llm")}
    make_plan(ExportOptions(only=only), SimpleNamespace(**vars(family("llava-ov")) | checks), open_checkpoint(None))
    assert seen == checked


class TestContext:
    """A clip's tokens, the prompt's others, and 16 positions for an answer, in what the LLM was trained for."""

    @pytest.mark.parametrize(
        ("chosen", "tokens", "prompt", "limit", "expected"),
        [
            (None, 257, 20, 4096, 1536),  # 1024 for question and answer, in whole 256s
            (None, 256, 20, 4096, 1280),
            (None, 257, 20, 1400, 1400),
            (None, 100, 2000, 4096, 2304),  # a template of 2000 tokens
            (None, 80, 4, 100, 100),  # as full as can be
            (100, 80, 4, 200, 100),
            (200, 80, 4, 200, 200),
        ],
    )
    def test_it_has_room_for_question_and_answer(
        self, chosen: int | None, tokens: int, prompt: int, limit: int, expected: int
    ) -> None:
        got = _max_context(chosen, tokens, prompt, limit)
        assert got == expected and type(got) is int

    @pytest.mark.parametrize(
        ("chosen", "tokens", "prompt", "limit", "named"),
        [
            (None, 81, 4, 100, ["81 visual tokens", "100 positions", "--frames", "--compress"]),
            (80, 80, 4, 200, ["--max-context", 80, "80 visual tokens", 20, 100]),
            (81, 80, 4, 200, ["--max-context", 81, "80 visual tokens", 20, 100]),
            (99, 80, 4, 200, ["--max-context", 99, "80 visual tokens", 20, 100]),
            (201, 80, 4, 200, ["--max-context", 201, 200]),
        ],
    )
    def test_one_without_it_is_refused(self, chosen: int | None, tokens: int, prompt: int, limit: int, named: list[Any]) -> None:
        with pytest.raises(ExportError, match=naming(*named)):
            _max_context(chosen, tokens, prompt, limit)
