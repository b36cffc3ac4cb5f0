"""`VideoChat`: a wrong question or file is refused before weights are loaded; repeated frames are known before the text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.demo.clips import write_mp4
from runtime.__main__ import main
from runtime.chat import VideoChat
from runtime.core.errors import EngineError, PromptError, VideoError
from runtime.engine import EngineOptions
from runtime.prompt import Prompt


@pytest.fixture
def no_engines(monkeypatch):
    def refuse(*_):
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr("runtime.vision.encoder.open_vision", refuse)
    monkeypatch.setattr("runtime.llm.decoder.open_engine", refuse)


@pytest.mark.parametrize(("video", "question"), [("absent.mp4", "what is it ?"), (None, " "), (None, "what " * 5000)])
def test_faults_of_the_request_cost_no_load(no_engines, bundle_path, clip, capsys, video, question):
    assert main(["run", str(bundle_path), video or str(clip), question]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_counts_are_there_before_the_first_text(bundle, clip):
    chat = VideoChat.open(bundle, "onnx")
    pieces = chat.ask(clip, "how many objects are there ?")
    assert chat.answer.visual_tokens == bundle.manifest.tokens_per_clip and chat.answer.text == ""
    assert "".join(pieces) == chat.answer.text != ""


def test_repeated_frames_of_a_short_clip_are_reported(bundle_path, tmp_path, capsys):
    write_mp4(tmp_path / "short.mp4", np.zeros((2, 126, 126, 3), np.uint8))  # each held for four frames of the file
    assert main(["run", str(bundle_path), str(tmp_path / "short.mp4"), "how many objects are there ?", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["repeated_frames"] == 8
    assert "shorter than 16 frames: 8 are repeated" in captured.err


def test_options_out_of_range_are_refused():
    with pytest.raises(EngineError, match="threads is -3"):
        EngineOptions(threads=-3)
    with pytest.raises(EngineError, match='device is "tpu"'):
        EngineOptions(device="tpu")


def test_errors_have_their_own_classes(bundle):
    with pytest.raises(VideoError):
        VideoChat.check(Prompt(bundle), "absent.mp4", "what is it ?")
    with pytest.raises(PromptError):
        VideoChat.check(Prompt(bundle), "absent.mp4", "")


def test_a_tokenizer_is_read_once_however_many_questions_follow(bundle, clip, monkeypatch):
    from tokenizers import Tokenizer

    class Counted:
        reads = 0

        @classmethod
        def from_file(cls, path):
            cls.reads += 1
            return Tokenizer.from_file(path)

    monkeypatch.setattr("tokenizers.Tokenizer", Counted)
    chat = VideoChat.open(bundle, "onnx")
    for question in ("how many objects are there ?", "which shape appears last ?"):
        list(chat.ask(clip, question))
    assert Counted.reads == 1
