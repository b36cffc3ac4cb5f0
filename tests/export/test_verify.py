"""What is judged, by which tolerance, and what is said of a graph that differs, on engines that stand in for the real ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of
from refusal import naming

from export import verify
from runtime.bundle import Bundle
from runtime.core.errors import ExportError
from runtime.engine import EngineOptions
from runtime.tools.compare import Row

LOGITS = np.array([1.0, -10.0, 4.0], np.float32)


class TestBatch:
    @pytest.fixture
    def seen(self, monkeypatch) -> SimpleNamespace:
        """What the decoders were given, together and alone; error: what the batch adds to the last logit."""
        seen = SimpleNamespace(prefilled=[], last=None, alone=[], opened=[], closed=False, error=0.0)

        class Together:
            def extend(self, slot, embeddings):
                seen.prefilled.append((slot, embeddings))

            def step(self, slots, last):
                assert list(slots) == [0, 1, 2]
                seen.last = last
                return np.tile(LOGITS + np.array([0, 0, seen.error], np.float32), (3, 1))

            def close(self):
                seen.closed = True

        class Alone:
            def conversation(self):
                return SimpleNamespace(extend=lambda prompt: seen.alone.append(prompt) or LOGITS)

        table = np.random.default_rng(1).normal(0, 0.5, (600, 8)).astype(np.float32)
        monkeypatch.setattr(verify, "Prompt", lambda bundle: SimpleNamespace(embeddings=table))
        monkeypatch.setattr(verify.SlotDecoder, "open", lambda *arguments: seen.opened.append(arguments[1:]) or Together())
        monkeypatch.setattr(verify.LocalDecoder, "open", lambda *arguments: seen.opened.append(arguments[1:]) or Alone())
        return seen

    @staticmethod
    def bundle(context: int = 64) -> Bundle:
        return bundle_of(hidden_size=8, max_context=context)

    def test_each_conversation_is_given_the_same_alone_and_in_the_batch(self, seen):
        result = verify.verify_batch(self.bundle(), 0.0)
        assert (result.stage, result.error, result.ok) == ("llm/batch", 0.0, True)
        assert [prompt.shape for prompt in seen.alone] == [(1, 6, 8), (1, 18, 8), (1, 10, 8)]
        for (slot, part), last, whole in zip(seen.prefilled, seen.last, seen.alone, strict=True):
            np.testing.assert_array_equal(np.concatenate([part, last[None]]), whole[0])
            assert seen.prefilled[slot][1] is part
        assert np.concatenate(seen.alone, axis=1).std() == pytest.approx(0.5, rel=0.1)  # as large as word embeddings
        assert seen.opened == [(3, "onnx", EngineOptions("cpu")), ("onnx", EngineOptions("cpu"))] and seen.closed

    def test_the_scale_is_that_of_the_first_512_rows_or_of_all(self, seen, monkeypatch):
        """A word embedding table is read where it lies, so not all of it."""
        for rows in (512, 513, 40):
            table = np.random.default_rng(1).normal(0, 0.5, (rows, 8)).astype(np.float32)
            table[512:] = 1e6
            monkeypatch.setattr(verify, "Prompt", lambda bundle, table=table: SimpleNamespace(embeddings=table))
            seen.alone.clear()
            verify.verify_batch(self.bundle(), 0.0)
            assert np.concatenate(seen.alone, axis=1).std() == pytest.approx(0.5, rel=0.15)

    def test_a_small_context_holds_what_it_can(self, seen):
        verify.verify_batch(self.bundle(8), 0.0)
        assert [prompt.shape[1] for prompt in seen.alone] == [6, 8, 8]

    def test_what_float32_does_to_the_checkpoint_is_allowed_four_times(self, seen):
        seen.error = 0.003  # of logits up to 10
        assert verify.verify_batch(self.bundle(), 1e-4).error == pytest.approx(3e-4, rel=1e-3)
        with pytest.raises(ExportError, match=naming("llm/batch", "ONNX Runtime", "3.00e-04", "1e-04", "fp32")):
            verify.verify_batch(self.bundle(), 0.0)


def _row(ok: bool, note: str = "") -> Row:
    return Row("vision/frame (float16)", "onnx", (2, 3), 1.0, 0.0312, 0.03, ok, note)


def test_float16_arithmetic_that_loses_too_much_is_refused_with_what_to_change():
    assert verify.verify_float16([_row(True)], "--precision fp32") == [_row(True)]
    for note in ("not finite", ""):
        named = naming("vision/frame (float16) differs", "3.12e-02", "3e-02", *filter(None, [note]), "--precision fp32")
        with pytest.raises(ExportError, match=named):
            verify.verify_float16([_row(True), _row(False, note)], "--precision fp32")


def test_the_llm_is_compared_by_its_own_precision_and_a_row_that_differs_is_refused(monkeypatch):
    rows = [_row(True), _row(True, "close")]
    asked = []
    monkeypatch.setattr(verify, "compare_llm", lambda *arguments: asked.append(arguments) or rows)
    monkeypatch.setattr(verify, "Prompt", lambda bundle: "prompt")
    monkeypatch.setattr(verify.LocalDecoder, "open", lambda *arguments: arguments)
    bundle = TestBatch.bundle()
    assert verify.verify_llm(bundle, "expected") == [_row(True), _row(True, "close")]
    assert asked == [((bundle, "onnx", EngineOptions("cpu")), "prompt", "expected", "fp32")]
    rows[1] = _row(False, "greedy ids")
    with pytest.raises(ExportError, match=naming("vision/frame (float16) differs", "3.12e-02", "3e-02", "greedy ids")):
        verify.verify_llm(bundle, "expected")
