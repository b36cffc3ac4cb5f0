"""Which graphs of a directory are computed in float16, and with what they are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from runtime.core.errors import NonFiniteError
from runtime.engine.onnx import OnnxEngine
from runtime.tools import float16_rows
from runtime.tools.compare import Row
from runtime.tools.float16_rows import compare_llm_float16, compare_vision_float16
from runtime.tools.reference import LLMReference

PIXELS = np.float16([[1, 2, 3], [4, 0, 6]])
FEATURES = PIXELS + np.float16(1)
TOKENS = np.float32([[5, 3, 7]])  # the larger of both frames
ROWS = ["vision/frame (float16)", "visual_tokens (float16)"]

ENCODER = "g (float16[1, 3] x) => (float16[1, 3] features) { features = Add(x, one) }"
COMPRESSOR = "g (float16[2, 3] features) => (float16[1, 3] visual_tokens) <int64[1] axis = {0}> { visual_tokens = ReduceMax(features, axis) }"
WHOLE = """g (float16[2, 3] x) => (float16[1, 3] visual_tokens) <int64[1] axis = {0}> {
    features = Add(x, one)
    visual_tokens = ReduceMax(features, axis)
}"""
LOOP = """g (float16[2, 3] x) => (float16[1, 3] visual_tokens) <int64[1] axis = {0}, int64 count = {2}, bool always = {1}, float16[2, 3] features> {
    features = Loop(count, always) <body = body (int64 i, bool before) => (bool after, float16[3] row) {
        after = Identity(before)
        picked = Gather(x, i)
        row = Add(picked, one)
    }>
    visual_tokens = ReduceMax(features, axis)
}"""


def directory(path: Path, **graphs: str) -> Path:
    """Graphs of a bundle's vision encoder; one that must not be read is "unread"."""
    for name, text in graphs.items():
        file = path / f"{name.replace('_', '.')}.onnx"
        if text == "unread":
            file.write_bytes(b"no model")
        else:
            model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float16([1]), "one"))
            onnx.save(model, file)
    return path


@pytest.mark.parametrize(
    ("graphs", "stages"),
    [
        ({"vision_encoder": ENCODER, "vision_compressor": COMPRESSOR, "vision_loop": "unread", "vision": "unread"}, ROWS),
        ({"vision_loop": LOOP, "vision": "unread"}, ROWS),
        ({"vision": WHOLE}, ROWS[1:]),
    ],
    ids=["split", "loop", "whole"],
)
def test_a_frame_and_a_clip_are_compared_where_the_graphs_take_them_apart(
    tmp_path: Path, graphs: dict[str, str], stages: list[str]
) -> None:
    given = directory(tmp_path, **graphs)
    rows = compare_vision_float16(given, PIXELS, FEATURES[:, None], TOKENS, False)
    assert [(row.stage, row.backend, row.shape, row.max_abs, row.ok) for row in rows] == [
        (stage, "onnx", (1, 3), 0, True) for stage in stages
    ]
    wrong = compare_vision_float16(given, PIXELS, FEATURES[:, None] + np.float16(1), TOKENS + 1, False)
    assert [(row.stage, row.ok) for row in wrong if not row.ok] == [(stages[0], False)]


def test_tokens_that_are_a_choice_are_compared_as_one(tmp_path: Path) -> None:
    (row,) = compare_vision_float16(directory(tmp_path, vision=WHOLE), PIXELS, FEATURES[:, None], TOKENS, True)
    assert row.ok and "other rows" in row.note


def test_engines_run_the_graphs_as_they_are_written_and_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, closed = [], []
    load, close = OnnxEngine.load, OnnxEngine.close

    def loaded(model, *arguments, **more):
        opened.append(more)
        return load(model, *arguments, **more)

    monkeypatch.setattr(OnnxEngine, "load", loaded)
    monkeypatch.setattr(OnnxEngine, "close", lambda engine: closed.append(close(engine)))
    given = directory(tmp_path, vision_encoder=ENCODER, vision_compressor=COMPRESSOR)
    compare_vision_float16(given, PIXELS, FEATURES[:, None], TOKENS, False)
    assert opened == [{"data": tmp_path, "as_written": True}] * 2 and len(closed) == 2
    (tmp_path / "llm").mkdir()
    directory(tmp_path / "llm", decoder=ENCODER)
    float16_rows._decoder_engine(SimpleNamespace(path=tmp_path), "llm/decoder").close()
    assert opened[2:] == [{"data": tmp_path / "llm", "as_written": True}]


class Llm:
    """Stand-ins for both decoders; log: what was opened, fed and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, context: int = 100):
        self.log: list = []
        self.error = error
        self.embeddings = np.arange(14, dtype=np.float32).reshape(7, 2)
        self.max_context = context
        self.engine = SimpleNamespace(backend="onnx", close=lambda: self.log.append("closed"))
        monkeypatch.setattr(float16_rows, "_decoder_engine", lambda bundle, graph: (bundle.path, graph))
        monkeypatch.setattr(float16_rows, "Prompt", lambda bundle: self)
        monkeypatch.setattr(float16_rows, "LocalDecoder", lambda bundle, engine: self.log.append(engine) or self)
        monkeypatch.setattr(float16_rows, "SlotDecoder", lambda bundle, engine, slots: self.log.append((*engine, slots)) or self)
        monkeypatch.setattr(float16_rows, "compare_llm", self.compare)

    def embed(self, ids, visual):
        assert (ids, visual) == ("ids", "visual")
        return self.embeddings[None]

    def compare(self, decoder, prompt, expected, precision):
        assert decoder is prompt is self
        self.log.append((expected.greedy, expected.margins, precision))
        return [Row("llm/prefill", "onnx", (3,), 0, 0, 0.03, True)]

    def extend(self, slot, embedded):
        self.log.append((slot, embedded.tolist()))

    def step(self, slots, embedded):
        self.log.append((slots, embedded.tolist()))
        if self.error:
            raise self.error
        return np.float32([[9, 9, 9], [1, 2, 4]])

    def close(self):
        self.log.append("slots closed")


def expected(**more) -> LLMReference:
    return LLMReference("ids", "visual", np.float32([1, 2, 4]), [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5], **more)


@pytest.mark.parametrize(("context", "beside"), [(100, 12), (13, 12), (12, 11), (8, 7)])
def test_the_decoder_is_compared_for_four_ids_and_beside_a_longer_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: int, beside: int
) -> None:
    here = SimpleNamespace(path=tmp_path)
    llm = Llm(monkeypatch)
    alone = [(tmp_path, "llm/decoder"), ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], "fp16"), "closed"]
    assert [row.stage for row in compare_llm_float16(here, expected())] == ["llm/prefill (float16)"] and llm.log == alone
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "decoder.batch.onnx").touch()
    llm = Llm(monkeypatch, context=context)
    _, batch = compare_llm_float16(here, expected())
    assert (batch.stage, batch.backend, batch.shape, batch.max_abs, batch.tolerance) == (
        "llm/batch (float16)",
        "onnx",
        (3,),
        0,
        0.03,
    )
    assert batch.ok
    prompt = [[2.0 * at, 2.0 * at + 1] for at in range(7)]
    assert llm.log[3:] == [
        (tmp_path, "llm/decoder.batch", 2), (0, (2 * prompt)[:beside]), (1, prompt[:6]), ([0, 1], [prompt[0], prompt[6]]), "slots closed",
    ]  # fmt: skip


def test_an_error_of_a_batch_is_relative_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = replace(expected(), logits=np.float32([1, 2, 8]))
    row = float16_rows._compare_batch(SimpleNamespace(path=tmp_path), Llm(monkeypatch).embeddings, truth)
    assert row == Row("llm/batch", "onnx", (3,), 4, 4 / 8, 0.03, False, "")


def test_a_batch_that_is_not_finite_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Llm(monkeypatch, NonFiniteError("nan"))
    row = float16_rows._compare_batch(SimpleNamespace(path=tmp_path), llm.embeddings, expected())
    infinite = float("inf")
    assert row == Row("llm/batch", "onnx", (3,), infinite, infinite, 0.03, False, "values that are not finite")
    assert llm.log[-1] == "slots closed"


def test_a_batch_may_be_off_by_what_the_reference_itself_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float16_rows, "row_of", lambda *arguments, **how: how)
    llm = Llm(monkeypatch)
    how = float16_rows._compare_batch(SimpleNamespace(path=tmp_path), llm.embeddings, expected(rounding=0.5))
    assert how == {"rounding": 0.5}
