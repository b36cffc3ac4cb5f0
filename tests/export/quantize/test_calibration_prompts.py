"""Prompts about calibration clips, on stand-ins for the vision encoder and the prompt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from export.quantize import llm
from export.quantize.llm import calibration_prompts
from runtime.engine import EngineOptions


class FakePrompt:
    def __init__(self, bundle):
        self.bundle = bundle

    def ids(self, question):
        return f"ids of {question}"

    def embed(self, ids, tokens):
        return ids, tokens


@pytest.fixture
def engines(monkeypatch) -> list[SimpleNamespace]:
    made: list[SimpleNamespace] = []

    class Encoder:
        @classmethod
        def open(cls, bundle, backend, options):
            assert (backend, options) == ("onnx", EngineOptions("cpu"))
            encoder = SimpleNamespace(tokens=lambda pixels: (pixels * 2).astype(np.float16), engine=SimpleNamespace(closed=False))
            encoder.engine.close = lambda: setattr(encoder.engine, "closed", True)
            made.append(encoder.engine)
            return encoder

    monkeypatch.setattr(llm, "Prompt", FakePrompt)
    monkeypatch.setattr(llm, "VisionEncoder", Encoder)
    return made


def test_prompts_are_two_questions_about_each_of_four_clips(engines):
    asked: list[tuple[int, int]] = []

    def clips(count, frames):
        asked.append((count, frames))
        return [(np.full((frames, 1), index, np.float32), ["a", "b", "c"]) for index in range(count)]

    bundle = SimpleNamespace(manifest=SimpleNamespace(frames=3))
    prompts = list(calibration_prompts(bundle, SimpleNamespace(clips=clips)))
    assert asked == [(4, 3)] and [ids for ids, _ in prompts] == ["ids of a", "ids of b"] * 4
    assert [tokens.tolist() for _, tokens in prompts[::2]] == [[[2 * index]] * 3 for index in range(4)]
    assert prompts[0][1].dtype == np.float16
    (engine,) = engines
    assert engine.closed


def test_visual_tokens_take_the_place_of_clips(engines):
    prompts = list(calibration_prompts(SimpleNamespace(), None, "tokens"))
    assert len(prompts) == 3 and engines == []
    assert all(tokens == "tokens" and ids.startswith("ids of ") and ids.endswith("?") for ids, tokens in prompts)
