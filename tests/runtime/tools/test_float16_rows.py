"""Which graphs of a directory are computed in float16, and with what they are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from runtime.tools.float16_rows import compare_vision_float16

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
    """Graphs of a bundle's vision half; one that must not be read is "unread"."""
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
