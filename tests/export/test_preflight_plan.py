"""What is planned from a checkpoint's descriptions, and where a TensorRT release takes no graph of the options: without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import preflight
from export.families.chat import Chat
from export.options import ExportOptions
from export.preflight import check_options, make_plan
from runtime.core.errors import BundleError, CheckpointError, ExportError, PromptError

STANDARD = "--attention standard needs ONNX opset 24"
INT4 = "--llm-precision int4:64 needs ONNX opset 21"


@pytest.mark.parametrize(
    ("release", "options", "message"),
    [
        ("10.3", {"attention": "standard"}, f"{STANDARD}, TensorRT 10.3 takes up to 20; export with --attention portable, or for TensorRT 10.15 or newer"),
        ("10.7", {"attention": "standard"}, f"{STANDARD}, TensorRT 10.7 takes up to 20; export with --attention portable, or for TensorRT 10.15 or newer"),
        ("10.3", {"llm_precision": "int4:64"}, f"{INT4}, TensorRT 10.3 takes up to 20; export with --llm-precision int8, or for TensorRT 10.13 or newer"),
        ("10.3", {"llm_precision": "int4:64", "attention": "standard"}, f"{STANDARD} and {INT4}, TensorRT 10.3 takes up to 20; export with "
         "--attention portable and --llm-precision int8, or for TensorRT 10.15 or newer"),
        ("10.13", {"llm_precision": "int4:64", "attention": "standard"}, f"{STANDARD}, TensorRT 10.13 takes up to 22; export with "
         "--attention portable, or for TensorRT 10.15 or newer"),
        ("10.3", {"only": "llm", "llm_precision": "int4:64"}, f"{INT4}, TensorRT 10.3 takes up to 20; export with --llm-precision int8, or for "
         "TensorRT 10.13 or newer"),
    ],
)  # fmt: skip
def test_options_that_a_release_does_not_take_are_named_with_what_to_do(
    release: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError) as refused:
        check_options(ExportOptions(tensorrt=release, **options))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("release", "options"),
    [
        ("10.3", {}),
        ("10.3", {"precision": "int8"}),
        ("10.3", {"llm_precision": "int4", "only": "vision"}),
        ("10.13", {"llm_precision": "int4"}),
        ("10.15", {"llm_precision": "int4", "attention": "standard"}),
        ("11.1", {"attention": "standard"}),
    ],
)
def test_options_that_a_release_takes(release: str, options: dict[str, Any]) -> None:
    check_options(ExportOptions(tensorrt=release, **options))


def test_where_no_release_takes_it_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.decoder.OPSET", {"standard": 25})
    with pytest.raises(ExportError, match=r"needs ONNX opset 25, TensorRT 11\.1 takes up to 24; export with --attention portable$"):
        check_options(ExportOptions(tensorrt="11.1", attention="standard"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8", "error_budget": 0.0}, "--error-budget is 0, expected a share above 0 such as 0.05"),
        ({"precision": "int8", "calibrate": ""}, "--calibrate  is no directory; give one with a few typical clips"),
        ({"precision": "int8", "calibrate": "/no/such"}, "--calibrate /no/such is no directory; give one with a few typical clips"),
        ({"max_context": 0}, "--max-context is 0, expected at least 1 and room for the clip's tokens"),
        ({"frames": 0}, "--frames is 0, expected 1 to 1024"),
        ({"frames": 1, "split": True}, "--split takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more"),
        ({"frames": 1, "split": True, "only": "llm"}, "--split is about the vision half, which --only llm leaves out; drop one of them"),
        ({"llm_precision": "int5"}, '--llm-precision is "int5", expected fp32, fp16, int8, int4 or int4:BLOCK with a block of 16, 32, 64, 128, 256'),
        ({"only": "visoin"}, '--only is "visoin"; did you mean "vision"?'),
    ],
)  # fmt: skip
def test_an_option_is_refused_in_these_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as refused:
        check_options(ExportOptions(**options))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "options", [{"precision": "int8", "error_budget": 1.5}, {"precision": "int8", "calibrate": "/"}, {"only": "llm"}]
)
def test_options_that_are_taken(options: dict[str, Any]) -> None:
    check_options(ExportOptions(**options))


CHAT = Chat("{{ text }}", "template.json", "<video>", 4, [2], 1)
PREPROCESSING = {"size": [126, 126]}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of the clips and of the weight files."""
    asked: list[tuple[Any, ...]] = []

    class Clips:
        def __init__(self, preprocessing: dict[str, Any], directory: Path):
            asked.append((preprocessing, directory))

        def check(self, frames: int) -> None:
            asked.append(("check", frames))

    monkeypatch.setattr("export.quantize.calibration.Clips", Clips)
    monkeypatch.setattr("export.frames.FrameInput", lambda preprocessing, size: (preprocessing, size))
    monkeypatch.setattr(
        preflight, "check_prompt", lambda checkpoint, llm, published: 2000 if llm.chat and published == "hub" else 0
    )
    monkeypatch.setattr(preflight, "_log_settings", lambda checkpoint, llm: ["min_new_tokens"])
    return asked


def plan(seen: list[tuple[Any, ...]], frames: int = 8, options: dict[str, Any] | None = None) -> preflight.Plan:
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
    assert planned.max_context == 2304 and planned.input is None and planned.not_applied == ["min_new_tokens"]
    assert seen == ["vision weights", "llm weights"] and planned.vision.grid == (9, 6)
    planned = plan(seen, 3000, options={"frames": 3, "compress": "avgpool:window=2", "max_context": 2100})
    assert (planned.preset, planned.frames, planned.tokens) == (
        "avgpool:window=2",
        3,
        3 * 4 * 3 + 1,
    )  # what is left over at an edge of 9 is left out
    assert planned.max_context == 2100


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({"calibrate": "clips", "precision": "int8"}, [(PREPROCESSING, Path("clips")), ("check", 8)]),
        ({"calibrate": "clips", "precision": "int8", "input": "frames"}, [(PREPROCESSING | {"frames": [126, 126]}, Path("clips")), ("check", 8)]),
        ({"calibrate": "clips", "llm_precision": "int4", "input": "frames:40x60"}, [(PREPROCESSING | {"frames": [40, 60]}, Path("clips")), ("check", 8)]),
        ({"calibrate": "clips"}, []),
        ({"precision": "int8"}, []),
    ],
)  # fmt: skip
def test_the_users_clips_are_looked_into_where_they_calibrate(seen, options, checked) -> None:
    plan(seen, options=options)
    assert seen == [*checked, "vision weights", "llm weights"]


@pytest.mark.parametrize(
    ("only", "context", "not_applied"), [(None, 2304, ["min_new_tokens"]), ("vision", 0, []), ("llm", 2304, ["min_new_tokens"])]
)
def test_without_an_llm_there_is_no_context(seen, only, context, not_applied) -> None:
    planned = plan(seen, options={"only": only})
    assert (planned.max_context, planned.not_applied) == (context, not_applied)


@pytest.mark.parametrize(("text", "size"), [("frames", (126, 126)), ("frames:40x60", (40, 60))])
def test_frames_are_taken_in_the_size_asked_for(seen, text: str, size: tuple[int, int]) -> None:
    assert plan(seen, options={"input": text}).input == (PREPROCESSING, size)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (0, {}, "checkpoint: num_frames of its preprocessor config is 0, expected 1 to 1024; pass --frames"),
        (1025, {}, "checkpoint: num_frames of its preprocessor config is 1025, expected 1 to 1024; pass --frames"),
        (1, {"split": True}, "--split takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more"),
        (1, {"precision": "int8"}, "--precision int8 takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more"),
    ],
)  # fmt: skip
def test_frames_of_the_checkpoint_that_do_not_do(seen, frames: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as refused:
        plan(seen, frames, options)
    assert str(refused.value) == message
    assert plan(seen, frames, options | {"frames": 2}).frames == 2


@pytest.mark.parametrize(("frames", "options"), [(1, {}), (2, {"split": True}), (1, {"precision": "int8", "only": "llm"})])
def test_frames_of_the_checkpoint_that_do(seen, frames: int, options: dict[str, Any]) -> None:
    assert plan(seen, frames, options).frames == frames


def check(monkeypatch, vocabulary, refusal=("", None), **config) -> int:
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

        def prefix_and_suffix(self) -> None:
            step("around")

    def prompt_ids(tokenizer, template, video_token_id, messages) -> list[int]:
        assert (type(tokenizer), type(template), video_token_id) == (Tokenizer, Template, CHAT.video_token_id)
        assert messages[0]["content"][1]["text"] == "What happens in the video?"
        return step("ids", [5] * 7)

    monkeypatch.setattr("runtime.prompt.tokenizer.Tokenizer", Tokenizer)
    monkeypatch.setattr("runtime.prompt.template.ChatTemplate", Template)
    monkeypatch.setattr("runtime.prompt.ids.prompt_ids", prompt_ids)
    llm = SimpleNamespace(chat=CHAT, max_positions=4096, vocabulary=10)
    return preflight.check_prompt(SimpleNamespace(path=Path("checkpoint"), config=lambda: config), llm, "somebody/published")


def test_a_prompts_tokens_are_counted(monkeypatch) -> None:
    assert check(monkeypatch, {"a": 0, "z": 9}) == 7


@pytest.mark.parametrize("key", ["image_token_id", "image_token_index", "video_token_id", "video_token_index"])
def test_a_token_that_stands_for_a_clip_needs_no_embedding(monkeypatch, key) -> None:
    assert check(monkeypatch, {"a": 9, "<video>": 12}, **{key: 12}) == 7
    with pytest.raises(CheckpointError, match='has "<video>" as token 12'):
        check(monkeypatch, {"a": 9, "<video>": 12}, **{key: 11, "other_id": 12})


def test_the_last_token_without_an_embedding_is_named(monkeypatch) -> None:
    with pytest.raises(CheckpointError, match=r'^checkpoint/tokenizer\.json has "b" as token 12, the LLM has 10 \(vocab_size'):
        check(monkeypatch, {"a": 9, "c": 10, "b": 12, "z": 11})
    with pytest.raises(CheckpointError, match='has "c" as token 10'):
        check(monkeypatch, {"a": 9, "c": 10})


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ("tokenizer", BundleError("t is no tokenizer"), r"^t is no tokenizer$"),
        ("render", PromptError("it refuses"), r"^checkpoint/template\.json: it refuses$"),
        ("around", PromptError("it refuses"), r"^checkpoint/template\.json: it refuses$"),
        (
            "ids",
            PromptError("no clip"),
            r"^checkpoint/template\.json: no clip; a part .* must become <video>: .* such as somebody/published$",
        ),
    ],
)
def test_a_prompt_that_can_not_be_made_is_the_checkpoints_fault(monkeypatch, step, error, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        check(monkeypatch, {"a": 0}, (step, error))


@pytest.mark.parametrize(
    ("penalty", "names", "said"),
    [
        (1, [], []),
        (1.25, [], ["checkpoint/generation_config.json: repetition_penalty 1.25 goes into the bundle"]),
        (1, ["a", "b"], ["warning: checkpoint/generation_config.json sets a, b, which the runtime does not apply: its answers can differ "
                         "from those of transformers' generate"]),
    ],
)  # fmt: skip
def test_settings_are_told_where_there_are_some(monkeypatch, capsys, penalty, names, said) -> None:
    monkeypatch.setattr("export.families.chat.settings_not_applied", lambda checkpoint: names)
    chat = Chat("{{ text }}", "template.json", "<video>", 4, [2], penalty)
    assert preflight._log_settings(SimpleNamespace(path=Path("checkpoint")), SimpleNamespace(chat=chat)) == names
    assert capsys.readouterr().err.splitlines() == said
