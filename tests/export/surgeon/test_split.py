"""Encoder and compressor cut out of a looped vision graph: the same numbers, the weights shared, and what can't be cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from refusal import naming
from surgeon_graphs import model_from_text, normal, run

from export.surgeon import run_passes
from export.surgeon.split import split
from runtime.core.errors import ExportError

T, GRID, D = 3, (2, 4), 5
BODY = """g (float[3,2,6] pixel_values) => (float[12,5] visual_tokens) {
    hidden = MatMul(pixel_values, first)
    wide = Reshape(hidden, shape)
    patches = MatMul(wide, second)
    pooled = ReduceMean<keepdims = 0>(patches, axes)
    across = ReduceMax<keepdims = 0>(patches, frames)
    visual_tokens = Concat<axis = 0>(TAIL)
}"""


def _model(tail: str = "pooled, across, newline"):
    model = model_from_text(
        BODY.replace("TAIL", tail),
        first=normal(6, 20),
        second=normal(5, 5, seed=1),
        shape=np.array([T, 8, 5]),
        axes=np.array([1]),
        frames=np.array([0]),
        newline=normal(1, 5, seed=2),
    )
    for node in model.graph.node[3:]:
        node.name = f"compress/{node.name}"
    return model


def _looped(model):
    return run_passes(model, ["frame_loop"], graph="vision.loop", required=["frame_loop"])[0]


def test_encoder_of_each_frame_then_compressor_equals_the_graph():
    pixels = normal(T, 2, 6, seed=3)
    (expected,) = run(_model(), {"pixel_values": pixels})
    encoder, compressor = split(_looped(_model()), GRID)
    for model in (encoder, compressor):
        onnx.checker.check_model(model, full_check=True)
    features = np.concatenate([run(encoder, {"pixel_values": frame[None]})[0] for frame in pixels])
    assert features.shape == (T, *GRID, D)
    np.testing.assert_allclose(run(compressor, {"features": features})[0], expected, rtol=1e-6, atol=1e-6)


def test_features_may_leave_as_a_grid():
    model = model_from_text(
        """g (float[3,8,6] pixel_values) => (float[3,1,5] visual_tokens) {
            patches = MatMul(pixel_values, weight)
            tiles = Reshape(patches, shape)
            inner = Relu(tiles)
            visual_tokens = ReduceMax<keepdims = 0>(inner, axes)
        }""",
        weight=normal(6, 5),
        shape=np.array([T, 8, 1, 5]),
        axes=np.array([1]),
    )
    model.graph.node[3].name = "compress/top/ReduceMax"
    pixels = normal(T, 8, 6, seed=3)
    encoder, compressor = split(_looped(model), GRID)
    features = np.concatenate([run(encoder, {"pixel_values": frame[None]})[0] for frame in pixels])
    assert features.shape == (T, *GRID, D)
    np.testing.assert_allclose(
        run(compressor, {"features": features})[0], run(model, {"pixel_values": pixels})[0], rtol=1e-6, atol=1e-6
    )


def test_an_encoder_that_picks_patches_itself_keeps_that():
    model = model_from_text(
        """g (float[3,8,6] pixel_values) => (float[8,5] visual_tokens) {
            patches = MatMul(pixel_values, weight)
            turned = Gather<axis = 1>(patches, order)
            inner = Relu(turned)
            visual_tokens = ReduceMax<keepdims = 0>(inner, axes)
        }""",
        weight=normal(6, 5),
        order=np.arange(8)[::-1].copy(),
        axes=np.array([0]),
    )
    model.graph.node[3].name = "compress/top/ReduceMax"
    pixels = normal(T, 8, 6, seed=3)
    expected = np.maximum(pixels @ normal(6, 5), 0)[:, ::-1]
    encoder, compressor = split(_looped(model), GRID)
    features = np.concatenate([run(encoder, {"pixel_values": frame[None]})[0] for frame in pixels])
    np.testing.assert_allclose(features, expected.reshape(T, *GRID, D), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run(compressor, {"features": features})[0], expected.max(0), rtol=1e-6, atol=1e-6)


def test_each_part_has_the_weights_that_it_reads_and_no_loop():
    encoder, compressor = split(_looped(_model()), GRID)
    names = [{tensor.name for tensor in model.graph.initializer} for model in (encoder, compressor)]
    assert {"first", "second"} <= names[0] and "newline" in names[1]
    assert not names[0] & {"newline", "axes"} and not names[1] & {"first", "second"}
    for model, known in ((encoder, {"hidden", "wide"}), (compressor, {"pooled", "across"})):
        made = {name for node in model.graph.node for name in node.output}
        assert known <= {value.name for value in model.graph.value_info} < made, "shapes of what it computes itself"
    assert not any(node.op_type in ("Loop", "Gather") for model in (encoder, compressor) for node in model.graph.node)


def test_weights_outside_the_file_stay_where_they_are():
    model = _looped(_model())
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "first")
    onnx.external_data_helper.set_external_data(weight, "vision.onnx.data", 64, weight.ByteSize())
    weight.ClearField("raw_data")
    encoder, _ = split(model, GRID)
    (kept,) = (tensor for tensor in encoder.graph.initializer if tensor.name == "first")
    assert kept == weight


def test_weights_that_the_loop_has_itself_are_the_encoders():
    model = _looped(_model())
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "first")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    (body,) = (attribute.g for attribute in loop.attribute)
    body.initializer.add().CopyFrom(weight)
    model.graph.initializer.remove(weight)
    encoder, compressor = split(model, GRID)
    assert [[tensor.name for tensor in part.graph.initializer].count("first") for part in (encoder, compressor)] == [1, 0]


def test_two_loops_are_refused():
    model = _looped(_model())
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    model.graph.node.add().CopyFrom(loop)
    with pytest.raises(ExportError, match=naming("2 loops", "--split")):
        split(model, GRID)


def test_a_graph_without_a_loop_is_refused():
    with pytest.raises(ExportError, match=naming("0 loops", "--split")):
        split(_model(), GRID)


def test_two_tensors_of_a_frame_are_refused():
    model = _model()
    model.graph.node[4].input[0] = "wide"
    with pytest.raises(ExportError, match=naming("2 tensors", "--split")):
        split(_looped(model), GRID)


def test_a_compressor_that_reads_what_only_the_encoder_has_is_refused():
    model = model_from_text(
        """g (float[3,8,6] pixel_values) => (float[16,6] visual_tokens) {
            patches = MatMul(pixel_values, weight)
            pooled = ReduceMax<keepdims = 0>(patches, frames)
            picture = ReduceMax<keepdims = 0>(pixel_values, frames)
            visual_tokens = Concat<axis = 0>(pooled, picture)
        }""",
        weight=normal(6, 6),
        frames=np.array([0]),
    )
    for node in model.graph.node[1:]:
        node.name = f"compress/{node.name}"
    with pytest.raises(ExportError, match=naming("vision.compressor", "pixel_values", "--split")):
        split(_looped(model), GRID)


def test_features_that_are_no_grid_are_refused():
    with pytest.raises(ExportError, match=naming("8 patches", "Squeeze", "3x3")):
        split(_looped(_model()), (3, 3))
