"""A decoder's cache and nothing else, as an ONNX file: rows are scattered into it, and twice what is read of it comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PAIRS = {"past_key_values.0.key": "present.0.key"}


def save_cache_graph(path: Path, capacity: int, batch: int | str = "B", dtype: int = TensorProto.FLOAT) -> Path:
    """inputs_embeds [batch, S, 2] go to the rows `position_ids` [batch, S] of a cache [batch, 1, capacity, 2]; logits are
    [batch, 1, P, 2], twice its first rows, as many as attention_mask [batch, P] has."""
    nodes = [
        helper.make_node("Unsqueeze", ["inputs_embeds", "head"], ["rows"]),
        helper.make_node("Unsqueeze", ["position_ids", "head_and_width"], ["positions"]),
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("Expand", ["positions", "shape"], ["index"]),
        helper.make_node("ScatterElements", ["past_key_values.0.key", "index", "rows"], ["present.0.key"], axis=2),
        helper.make_node("Shape", ["attention_mask"], ["length"], start=1),
        helper.make_node("Slice", ["present.0.key", "zero", "length", "two"], ["read"]),
        helper.make_node("Add", ["read", "read"], ["logits"]),
    ]
    values = {"head": [1], "head_and_width": [1, 3], "zero": [0], "two": [2]}
    of = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "cache",
        [
            of("inputs_embeds", dtype, [batch, "S", 2]),
            of("position_ids", TensorProto.INT64, [batch, "S"]),
            of("attention_mask", TensorProto.INT64, [batch, "P"]),
            of("past_key_values.0.key", dtype, [batch, 1, capacity, 2]),
        ],
        [of("logits", dtype, [batch, 1, "P", 2]), of("present.0.key", dtype, [batch, 1, capacity, 2])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def feeds(rows: np.ndarray, positions: list[list[int]], read: int) -> dict[str, np.ndarray]:
    """What a run is fed that writes `rows` and reads `read` rows."""
    return {
        "inputs_embeds": rows,
        "position_ids": np.array(positions, np.int64),
        "attention_mask": np.ones((len(positions), read), np.int64),
    }
