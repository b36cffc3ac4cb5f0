"""What is read of a checkpoint's JSON files besides its config, wherever a release of transformers wrote it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import naming

from export.families.chat import Chat, read_chat, read_preprocessing, settings_not_applied
from runtime.core.errors import CheckpointError

SIZE = {"height": 30, "width": 40}
TOKENS = {"added_tokens": [{"id": 4, "content": "<video>"}, {"id": 2, "content": "<|im_end|>"}]}


def checkpoint(files: dict[str, Any], path: Path = Path("C"), config: dict[str, Any] | None = None) -> Any:
    """A checkpoint at `path` of these JSON files."""
    return SimpleNamespace(path=path, json=files.get, config=lambda: config or {})


def processor(mean: float, **values: Any) -> dict[str, Any]:
    return {"size": SIZE, "image_mean": [mean] * 3, "image_std": [0.5] * 3} | values


class TestPreprocessing:
    FILES = (
        ("video_preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    )

    @staticmethod
    def files(*entries: tuple[str, str | None, Any]) -> dict[str, Any]:
        files: dict[str, Any] = {}
        for name, part, values in entries:
            files[name] = files.get(name, {}) | {part: values} if part else values
        return files

    @pytest.mark.parametrize("first", range(4))
    def test_a_processor_for_videos_comes_before_one_for_images(self, first: int) -> None:
        entries = [(*place, processor(0.1 * number)) for number, place in enumerate(self.FILES)]
        preprocessing, _ = read_preprocessing(checkpoint(self.files(*entries[first:])))
        assert preprocessing.image_mean == (0.1 * first,) * 3

    @pytest.mark.parametrize("useless", [{"image_mean": [0] * 3}, {"size": SIZE}, ["size", "image_mean"]])
    def test_one_that_does_not_say_size_and_mean_is_passed_over(self, useless: Any) -> None:
        entries = [(*place, useless) for place in self.FILES[:3]]
        with pytest.raises(CheckpointError, match=naming("C", "preprocessor_config.json", "size", "image_mean")):
            read_preprocessing(checkpoint(self.files(*entries)))
        last = (*self.FILES[3], processor(0.25))
        assert read_preprocessing(checkpoint(self.files(*entries, last)))[0].image_mean == (0.25,) * 3

    @pytest.mark.parametrize("place", FILES)
    def test_a_fault_is_told_with_the_file_that_has_it(self, place: tuple[str, str | None]) -> None:
        with pytest.raises(CheckpointError, match=rf"^C/{place[0]}: do_resize is false"):
            read_preprocessing(checkpoint(self.files((*place, processor(0, do_resize=False)))))

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({}, {"size": (30, 40), "resample": "bicubic", "rescale_factor": 1 / 255, "image_mean": (0.25,) * 3, "image_std": (0.5,) * 3}),
            ({"resample": 0}, {"resample": "nearest"}),
            ({"resample": 1}, {"resample": "lanczos"}),
            ({"resample": 2}, {"resample": "bilinear"}),
            ({"resample": 4}, {"resample": "box"}),
            ({"resample": 5}, {"resample": "hamming"}),
            ({"rescale_factor": 0.5}, {"rescale_factor": 0.5}),
            ({"do_rescale": False, "rescale_factor": 0.5}, {"rescale_factor": 1}),
            ({"do_normalize": False}, {"image_mean": 0, "image_std": 1}),
            ({"do_rescale": None, "do_normalize": None, "do_resize": None}, {"rescale_factor": 1 / 255, "image_mean": (0.25,) * 3}),
            ({"do_center_crop": True, "crop_size": SIZE}, {"size": (30, 40)}),
            ({"do_center_crop": True}, {"size": (30, 40)}),
            ({"do_center_crop": False, "crop_size": {"height": 9, "width": 9}}, {"size": (30, 40)}),
        ],
    )  # fmt: skip
    def test_what_is_not_said_is_what_transformers_takes(self, values: dict[str, Any], expected: dict[str, Any]) -> None:
        preprocessing, frames = read_preprocessing(checkpoint({"preprocessor_config.json": processor(0.25, **values)}))
        assert preprocessing == replace(preprocessing, **expected) and frames is None

    @pytest.mark.parametrize(("frames", "said"), [(1, True), (32, True), (0, False), (-3, False), (2.0, False), (True, False)])
    def test_a_number_of_frames_is_a_whole_one_from_1(self, frames: Any, said: bool) -> None:
        source = checkpoint({"preprocessor_config.json": processor(0, num_frames=frames)})
        if said:
            assert read_preprocessing(source)[1] == frames
        else:
            with pytest.raises(CheckpointError, match=naming(f"num_frames is {frames}")):
                read_preprocessing(source)

    @pytest.mark.parametrize("resample", [True, [3], 3.0, 6, None])
    def test_a_filter_is_a_number_of_pillows_or_a_name(self, resample: Any) -> None:
        with pytest.raises(CheckpointError, match=naming("C/preprocessor_config.json")):
            read_preprocessing(checkpoint({"preprocessor_config.json": processor(0, resample=resample)}))
        named = read_preprocessing(checkpoint({"preprocessor_config.json": processor(0, resample="box")}))[0]
        assert named.resample == "box"

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"size": 9}, "preprocessor size is 9; expected"),
            ({"size": {"height": 9}}, r"preprocessor size is \{'height': 9\}"),
            ({"size": {"width": 9}}, r"preprocessor size is \{'width': 9\}"),
            ({"do_center_crop": True, "crop_size": {"height": 9, "width": 9}}, "do_center_crop with crop_size"),
            ({"image_std": None}, "describes no usable preprocessing"),
        ],
    )
    def test_what_the_runtime_can_not_do_is_refused(self, values: dict[str, Any], said: str) -> None:
        with pytest.raises(CheckpointError, match=f"C/preprocessor_config.json.*{said}"):
            read_preprocessing(checkpoint({"preprocessor_config.json": processor(0, **values)}))

    def test_a_size_may_say_more_than_height_and_width(self) -> None:
        size = SIZE | {"longest_edge": None}
        assert read_preprocessing(checkpoint({"preprocessor_config.json": processor(0, size=size)}))[0].size == (30, 40)


class TestChat:
    FILES = {"tokenizer.json": TOKENS, "generation_config.json": {"eos_token_id": 2}, "chat_template.json": {"chat_template": "T"}}  # noqa: RUF012

    def read(self, config: dict[str, Any] | None = None, vocabulary: int = 9, **files: Any) -> Any:
        given = {name: files.get(name.partition(".")[0], values) for name, values in (self.FILES | MORE).items()}
        return read_chat(checkpoint(given, config=config), 4, vocabulary, "a/published")

    def test_the_video_token_the_ends_and_no_penalty(self) -> None:
        assert self.read() == Chat("T", "chat_template.json", "<video>", 4, [2], None)

    @pytest.mark.parametrize(("penalty", "given"), [(1e-3, 1e-3), (1e3, 1e3), (1.1, 1.1), (2, 2.0)])
    def test_a_penalty_is_read(self, penalty: float, given: float) -> None:
        chat = self.read(generation_config={"eos_token_id": 2, "repetition_penalty": penalty})
        assert chat.repetition_penalty == given and type(chat.repetition_penalty) is float

    @pytest.mark.parametrize("penalty", [9.9e-4, 1001])
    def test_a_penalty_that_logits_do_not_bear_is_refused(self, penalty: float) -> None:
        with pytest.raises(CheckpointError, match=naming("repetition_penalty", "0.001", 1000)):
            self.read(generation_config={"eos_token_id": 2, "repetition_penalty": penalty})

    @pytest.mark.parametrize("added", [3, {"id": 4}, ["x"], [{}], [{"id": 4}], [{"id": "4", "content": "<video>"}], [{"id": True, "content": "a"}],
                                       [{"id": 4, "content": 5}], [*TOKENS["added_tokens"], None]])  # fmt: skip
    def test_added_tokens_are_objects_with_a_number_and_a_text(self, added: Any) -> None:
        with pytest.raises(CheckpointError, match=naming("C", "tokenizer.json", "added_tokens", "id", "content")):
            self.read(tokenizer={"added_tokens": added})

    @pytest.mark.parametrize("tokenizer", [{}, {"added_tokens": None}, {"added_tokens": [{"id": 5, "content": "<video>"}]}])
    def test_the_video_token_is_an_added_one(self, tokenizer: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=naming("token id 4", "tokenizer.json", "a/published")):
            self.read(tokenizer=tokenizer)

    def test_a_checkpoint_without_a_tokenizer_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match=naming("C", "tokenizer.json")):
            self.read(tokenizer=None)

    @pytest.mark.parametrize("ends", [None, [], "2", [2, "3"], ["3", 2], [None], True, 2.0])
    def test_ends_are_numbers_of_tokens(self, ends: Any) -> None:
        with pytest.raises(CheckpointError, match=naming("eos_token_id")):
            self.read({"text_config": {"eos_token_id": 2}}, generation_config={"eos_token_id": ends})

    def test_no_end_anywhere_is_refused(self) -> None:
        for config in ({}, {"text_config": None}):
            with pytest.raises(CheckpointError, match=naming("eos_token_id", None)):
                self.read(config, generation_config={})

    @pytest.mark.parametrize("penalty", ["1.1", True, [1.1], float("nan"), 0])
    def test_a_penalty_is_a_number(self, penalty: Any) -> None:
        with pytest.raises(CheckpointError, match=naming("C/generation_config.json", "repetition_penalty")):
            self.read(generation_config={"eos_token_id": 2, "repetition_penalty": penalty})

    @pytest.mark.parametrize(
        "generation", [{"eos_token_id": 2, "repetition_penalty": 1}, {"eos_token_id": 2, "repetition_penalty": None}]
    )
    def test_a_penalty_of_1_is_none(self, generation: dict[str, Any]) -> None:
        chat = self.read(generation_config=generation)
        assert chat.repetition_penalty is None

    @pytest.mark.parametrize(
        "value",
        [None, 5, [], {}, {"default": None}, ["T"], [{"name": "rag", "template": "T"}], [{"template": "T"}], [{"name": "default"}]],
    )
    def test_what_holds_no_default_template_is_passed_over(self, value: Any) -> None:
        entry = {"chat_template": value}
        assert self.read(chat_template=entry, tokenizer_config={"chat_template": "K"}).template == "K"
        with pytest.raises(CheckpointError, match=naming("C", "chat template", "chat_template.jinja")):
            self.read(chat_template=entry, tokenizer_config=None)

    def test_the_default_is_found_behind_entries_of_other_kinds(self) -> None:
        entries = ["x", None, {"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
        assert self.read(chat_template={"chat_template": entries}).template == "D"

    def test_ends_are_those_of_the_generation_config_else_of_the_llm(self) -> None:
        config = {"text_config": {"eos_token_id": [5, 2]}}
        assert self.read(config, generation_config={"eos_token_id": [7, 2]}).eos_token_ids == [7, 2]
        assert self.read(config, generation_config={}).eos_token_ids == [5, 2]
        assert self.read(config, generation_config=None).eos_token_ids == [5, 2]

    @pytest.mark.parametrize(("ends", "vocabulary"), [([9], 9), ([-1, 9], 9)])
    def test_an_answer_must_be_able_to_end(self, ends: list[int], vocabulary: int) -> None:
        with pytest.raises(CheckpointError, match=naming("eos_token_id", "vocab_size is 9")):
            self.read(generation_config={"eos_token_id": ends}, vocabulary=vocabulary)
        for inside in (0, 8):
            assert self.read(generation_config={"eos_token_id": [*ends, inside]}, vocabulary=vocabulary).eos_token_ids[-1] == inside

    @pytest.mark.parametrize(
        ("files", "template", "file"),
        [
            ({"processor_config": "P", "tokenizer_config": "K"}, "T", "chat_template.json"),
            ({"chat_template": None, "processor_config": "P", "tokenizer_config": "K"}, "P", "processor_config.json"),
            ({"chat_template": None, "tokenizer_config": "K"}, "K", "tokenizer_config.json"),
            ({"chat_template": {"tool_use": "U", "default": "D"}}, "D", "chat_template.json"),
            ({"chat_template": {"tool_use": "U"}, "tokenizer_config": "K"}, "K", "tokenizer_config.json"),
            ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}, "D", "chat_template.json"),
        ],
    )  # fmt: skip
    def test_the_template_is_looked_for_in_every_file(self, files: dict[str, Any], template: str, file: str) -> None:
        chat = self.read(**{name: {"chat_template": value} for name, value in files.items()})
        assert (chat.template, chat.template_file) == (template, file)

    def test_a_template_in_a_file_of_its_own_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
        chat = read_chat(checkpoint(self.FILES, tmp_path), 4, 9, "a/published")
        assert (chat.template, chat.template_file) == ("{{ 'é' }}", "chat_template.jinja")
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(CheckpointError, match=naming(tmp_path / "chat_template.jinja")):
            read_chat(checkpoint(self.FILES, tmp_path), 4, 9, "a/published")


MORE = {"processor_config.json": {}, "tokenizer_config.json": {}}


@pytest.mark.parametrize(
    ("name", "neutral", "effective"),
    [
        ("no_repeat_ngram_size", [0], 3),
        ("encoder_no_repeat_ngram_size", [0], 3),
        ("encoder_repetition_penalty", [1, 1.0], 1.2),
        ("suppress_tokens", [[]], [5]),
        ("begin_suppress_tokens", [[]], [5]),
        ("bad_words_ids", [[]], [[5]]),
        ("sequence_bias", [{}, []], [[[5], 2.0]]),
        ("min_length", [0], 4),
        ("min_new_tokens", [0], 4),
        ("forced_bos_token_id", [], 0),
        ("forced_eos_token_id", [], 0),
        ("exponential_decay_length_penalty", [], [5, 1.1]),
        ("guidance_scale", [1, 1.0], 1.5),
        ("num_beams", [1], 4),
        ("penalty_alpha", [0, 0.0], 0.6),
        ("dola_layers", [], "low"),
        ("stop_strings", [[]], ["."]),
        ("watermarking_config", [], {"bias": 2.0}),
    ],
)
def test_a_setting_that_changes_greedy_answers_is_named(name: str, neutral: list[Any], effective: Any) -> None:
    for value in [None, *neutral]:
        assert settings_not_applied(checkpoint({"generation_config.json": {name: value}})) == []
    assert settings_not_applied(checkpoint({"generation_config.json": {"temperature": 2.0, name: effective}})) == [name]
    assert settings_not_applied(checkpoint({})) == []
