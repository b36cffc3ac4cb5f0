"""What is compared with what, on stand-ins for engines and references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of

from runtime.bundle.manifest import StageTensor
from runtime.core.errors import NonFiniteError
from runtime.engine import EngineOptions
from runtime.prompt import PromptIds
from runtime.tools import float16_rows, parity, vision_rows
from runtime.tools.compare import Row, row_of
from runtime.tools.llm_rows import compare_llm
from runtime.tools.reference import LLMReference
from runtime.tools.stages import Stages

INF = float("inf")


class TestRow:
    @pytest.mark.parametrize(
        ("got", "precision", "selected", "note"),
        [
            ([[1.0, 2.0]] * 8, "fp32", False, ""),
            ([[1.0, np.nan]] * 8, "fp32", True, "values that are not finite"),
            ([[np.inf, 2.0]] * 8, "fp32", False, "values that are not finite"),
            ([[1.0, 2.0]], "fp32", True, "not the shape of torch's output"),
            ([[1.0, 2.0]] * 8, "fp32", True, "12.5% other rows, 0.5% allowed"),
            ([[1.0, 2.0]] * 8, "int8", True, "12.5% other rows, 30.0% allowed"),
        ],
    )
    def test_a_note_says_what_is_odd(self, got, precision, selected, note):
        expected = np.array([[1.0, 2.0]] * 7 + [[5.0, 6.0]])  # whose last row is no other's
        row = row_of("vision/encoder", "onnx", np.array(got), expected, precision, selected=selected)
        assert (row.stage, row.backend, row.shape, row.note) == ("vision/encoder", "onnx", np.array(got).shape, note)
        assert row.ok == (precision == "int8") and np.isinf(row.error) == ("not" in note)

    def test_json_has_no_number_that_is_not_finite(self):
        row = Row("a", "onnx", (2, 3), INF, float("nan"), 0.5, False, "odd")
        assert row.as_dict() == {
            "stage": "a", "backend": "onnx", "shape": [2, 3], "max_abs": None, "error": None, "tolerance": 0.5, "ok": False, "note": "odd",
        }  # fmt: skip
        assert replace(row, max_abs=1.5).as_dict()["max_abs"] == 1.5 and not row and replace(row, ok=True)


class TestLLM:
    """A vocabulary of 4; torch's logits are at most 100, so a margin up to 0.01 is a tie. Every step chooses what `chosen` says."""

    @staticmethod
    def rows(chosen, greedy, margins, rounding=0.0, fails_at=None):
        fed = []

        class Conversation:
            def extend(self, rows):
                if len(fed) == fails_at:
                    raise NonFiniteError("odd")
                fed.append(rows)
                logits = np.array([0.0, 1.0, 2.0, -100.0], np.float32)
                logits[chosen[len(fed) - 1]] = 50
                logits[3] *= 1 + chosen[0]
                return logits

        decoder = SimpleNamespace(engine=SimpleNamespace(backend="openvino"), conversation=Conversation)
        prompt = SimpleNamespace(embed=lambda ids, tokens: (ids, tokens), embeddings=np.arange(8).reshape(4, 2))
        logits = np.array([50.0, 1.0, 2.0, -100.0], np.float32)
        expected = LLMReference(PromptIds(([1], [2])), np.ones((1, 2)), logits, greedy, margins, rounding)
        rows = compare_llm(decoder, prompt, expected, "fp32")
        assert [row.stage for row in rows] == ["llm/prefill", "llm/greedy_ids"] and {row.backend for row in rows} == {"openvino"}
        if fed:
            assert fed[0] == (expected.ids, expected.visual_tokens)
            # each id after torch's own ids before it
            assert [rows.tolist() for rows in fed[1:]] == [[[[2 * id_, 2 * id_ + 1]]] for id_ in greedy[: len(fed) - 1]]
        return rows

    @pytest.mark.parametrize(
        ("chosen", "margins", "wrong", "note"),
        [
            ([0, 1, 2], [5, 5, 5], 0, "3 of 3 equal"),
            ([0, 2, 2], [5, 0.0099, 5], 0, "2 of 3 equal, 1 ties"),
            ([0, 2, 1], [0, 0.0099, 0], 0, "1 of 3 equal, 2 ties"),
            ([0, 2, 2], [5, 0.0101, 5], 1, "id 1 is 2, torch chose 1 by 0.0101"),
            ([1, 2, 1], [5, 6, 7], 3, "id 0 is 1, torch chose 0 by 5"),
        ],
    )
    def test_an_id_may_differ_where_torchs_best_two_were_closer_than_the_tolerance(self, chosen, margins, wrong, note):
        prefill, greedy = self.rows(chosen, [0, 1, 2], margins)
        assert greedy == Row("llm/greedy_ids", "openvino", (3,), wrong, wrong / 3, 0.0, not wrong, note)
        assert prefill.ok is (chosen[0] == 0) and (prefill.shape, prefill.tolerance) == ((4,), 1e-4)
        assert (prefill.max_abs, prefill.error) == (100 * chosen[0], chosen[0])  # -200 where torch has -100

    def test_what_float32_alone_does_widens_a_tie(self):
        _, greedy = self.rows([0, 2], [0, 1], [5, 0.0799], rounding=2e-4)
        assert greedy.ok and greedy.note == "1 of 2 equal, 1 ties"
        assert not self.rows([0, 2], [0, 1], [5, 0.0801], rounding=2e-4)[1].ok

    def test_logits_that_are_not_finite_fail_where_they_come(self):
        prefill, greedy = self.rows([0], [0, 1], [5, 5], fails_at=0)
        assert prefill == Row("llm/prefill", "openvino", (4,), INF, INF, 1e-4, False, "values that are not finite")
        assert greedy == Row("llm/greedy_ids", "openvino", (2,), 1.0, 0.5, 0.0, False, "values that are not finite")
        prefill, greedy = self.rows([0], [0, 1], [5, 5], fails_at=1)
        assert prefill.ok and not greedy.ok and greedy.note == "values that are not finite"

    def test_one_id_is_all_of_them_and_no_ids_are_all_equal(self):
        assert self.rows([1], [0], [5])[1].error == 1.0
        assert self.rows([0], [], [])[1] == Row("llm/greedy_ids", "openvino", (0,), 0.0, 0.0, 0.0, True, "0 of 0 equal")


@pytest.mark.parametrize(
    ("files", "backend", "precision", "rows"),
    [
        (["vision.onnx"], "onnx", "fp16", ["vision"]),
        (["llm/decoder.onnx"], "onnx", "fp32", ["llm"]),
        (["vision.onnx", "llm/decoder.onnx"], "onnx", "fp16", ["vision", "llm", "llm in float16"]),
        (["vision.onnx", "llm/decoder.onnx"], "openvino", "fp16", ["vision", "llm"]),
    ],
)
def test_halves_that_are_there_are_compared_and_the_decoder_is_closed(monkeypatch, files, backend, precision, rows):
    closed = []
    bundle = bundle_of(*files, precision=precision)
    decoder = SimpleNamespace(engine=SimpleNamespace(close=lambda: closed.append(True)))
    given = (bundle, backend, "options")
    monkeypatch.setattr(parity.LocalDecoder, "open", lambda *asked: decoder if asked == given else None)
    monkeypatch.setattr(parity, "Prompt", lambda of: ("prompt", of))
    monkeypatch.setattr(parity.reference, "llm", lambda of: ("reference", of))
    monkeypatch.setattr(parity, "compare_vision", lambda *asked: ["vision"] if asked == given else None)
    asked = (decoder, ("prompt", bundle), ("reference", bundle), precision)
    monkeypatch.setattr(parity, "compare_llm", lambda *given: ["llm"] if given == asked else None)
    monkeypatch.setattr(float16_rows, "compare_llm_float16", lambda *given: ["llm in float16"] if given[0] is bundle else None)
    assert parity._compare_backend(bundle, backend, "options") == rows
    assert len(closed) == ("llm" in rows)


INNER = {"vision/encoder": (1, 101, 1), "vision/projector": (2, 102, 3), "compress/nsp": (3, 103, 1)}


class TestVision:
    """Stages encoder, projector (every 3rd value is kept), nsp; each array is a number of its own."""

    STAGES = (
        StageTensor("vision/encoder", "vision", "x", rounding=1e-6),
        StageTensor("vision/projector", "vision", "x", 3, 3e-6),
        StageTensor("compress/nsp", "vision", "x"),
        StageTensor("llm", "llm/decoder", "x", 7),
    )
    OPTIONS = EngineOptions(threads=3)

    @pytest.fixture
    def compared(self, monkeypatch):
        """compared(backend, …): what is judged (got, expected, every, precision, rounding) and the rows."""

        def run(backend="onnx", split=False, files=(), precision="fp32", stages=self.STAGES):
            numbers = {"vision/encoder": 1, "vision/projector": 2, "compress/nsp": 3, "visual_tokens": 4}
            shown = {name: np.array(number) for name, number in numbers.items()}
            bundle = bundle_of(*files, split=split, stages=tuple(stages), precision=precision)
            spec = SimpleNamespace(name="pixel_values", dtype=np.dtype(np.float16))
            closed, asked = [], []

            class Engine:
                pixel_values, encodes_frames = spec, split

                def encode_clip(self, feed):
                    assert feed.dtype == np.float16
                    return np.array(20)

                def compress(self, features):
                    assert features == 20
                    return {"visual_tokens": np.array(41 if split else 40), "more": None}

                def close(self):
                    closed.append(True)

            def stages_of(of, pixels, options, names=None):
                assert of is bundle and pixels.dtype == np.float32
                assert (options, names) == ((self.OPTIONS, None) if backend == "onnx" else (EngineOptions(), []))
                listed = {stage.name for stage in stages} | {"visual_tokens"}
                inner = {name: array for name, array in shown.items() if name in listed} if names is None else {}
                return Stages(inner, dict.fromkeys([name for name in numbers if name in listed], 4))

            def outputs(of, name, needed=None):
                asked.append((name, needed))
                return {"stages": {name: 100 + number for name, number in numbers.items()}, "torch": {"visual_tokens": 400}}[name]

            judged = []
            monkeypatch.setattr(parity.reference, "clip", lambda of: np.zeros(2, np.float32))
            monkeypatch.setattr(parity.reference, "outputs", outputs)
            given = (bundle, backend, self.OPTIONS)
            monkeypatch.setattr(vision_rows, "open_vision", lambda *arguments: Engine() if arguments == given else None)
            monkeypatch.setattr(vision_rows, "run_stages", stages_of)
            monkeypatch.setattr(vision_rows, "_judge", lambda *arguments: judged.append(arguments) or ["judged"])
            monkeypatch.setattr(float16_rows, "compare_vision_float16", lambda *arguments: [arguments])
            rows = vision_rows.compare_vision(bundle, backend, self.OPTIONS)
            assert closed == [True]
            ((got, expected, every, _, by, at, rounding),) = judged
            assert (by, at) == (backend, precision)
            values = {name: (int(array), int(expected[name]), every[name]) for name, array in got.items()}
            return values, rounding, asked, rows

        return run

    def test_the_tokens_are_those_of_the_engine_that_answers(self, compared):
        values, rounding, asked, rows = compared()
        assert values == INNER | {"visual_tokens": (40, 400, 1)} and rounding == 3e-6
        assert asked == [("stages", None), ("torch", "visual_tokens")] and rows == ["judged"]

    def test_of_a_graph_for_one_frame_at_a_time_the_other_is_compared_too(self, compared):
        values, *_ = compared(files=["vision.loop.onnx"])
        assert values == INNER | {vision_rows.BATCHED: (4, 400, 1), "visual_tokens": (40, 400, 1)}

    def test_of_a_split_bundle_the_features_are_those_of_the_stage_before_compression(self, compared):
        values, _, asked, _ = compared(split=True)
        tokens = {vision_rows.BATCHED: (4, 400, 1), vision_rows.FEATURES: (20, 102, 3), "visual_tokens": (41, 400, 1)}
        assert values == INNER | tokens
        assert asked[0] == ("stages", "vision/projector")

    def test_another_engine_shows_its_tokens_alone_and_of_a_split_bundle_its_features(self, compared):
        values, _, asked, _ = compared("openvino", files=["vision.loop.onnx"], precision="fp16")
        assert values == {"visual_tokens": (40, 400, 1)} and asked == [("torch", "visual_tokens")]
        values, _, asked, _ = compared("openvino", split=True)
        assert values == {vision_rows.FEATURES: (20, 102, 3), "visual_tokens": (41, 400, 1)}
        assert asked == [("stages", "vision/projector"), ("torch", "visual_tokens")]

    def test_without_listed_stages_there_is_no_rounding(self, compared):
        assert compared(stages=())[:2] == ({"visual_tokens": (40, 400, 1)}, 0.0)

    def test_float16_is_also_computed_from_the_stage_before_compression(self, compared):
        rows = compared(precision="fp16")[-1]
        judged, (path, feed, before, truth, selected) = rows
        assert (judged, path, feed.dtype, int(before), truth, selected) == ("judged", Path("b"), np.float16, 2, 400, False)
