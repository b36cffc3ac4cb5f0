"""Equalisation: exact in float, found where channels are loud, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.quantize import equalize
from export.quantize.equalize import find_equalization
from export.quantize.layers import find_layers

K, N = 24, 16
LOUD = 5  # the channel whose scale is 60 times the others'
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (1, 40, K)).astype(np.float32)


def small_model(*extra: onnx.NodeProto, tied: bool = False, outputs: tuple[str, ...] = ("a", "b")) -> onnx.ModelProto:
    """LayerNormalization -> two products; extra: more nodes; tied: both products have one weight."""
    scale = np.ones(K, np.float32)
    scale[LOUD] = 60
    constants = {
        "scale": scale,
        "bias": RNG.normal(0, 0.1, K).astype(np.float32) * scale,
        "wa": RNG.normal(0, 1, (K, N)).astype(np.float32) / scale[:, None],
        "wb": RNG.normal(0, 1, (K, N)).astype(np.float32) / scale[:, None],
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["normal"], "norm"),
        helper.make_node("MatMul", ["normal", "wa"], ["a"], "product_a"),
        helper.make_node("MatMul", ["normal", "wa" if tied else "wb"], ["b"], "product_b"),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40, K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"x": X})


def found_in(model: onnx.ModelProto) -> equalize.Equalization:
    (normal,) = run(small_model(outputs=("normal",)), "normal")
    return find_equalization(model, Path(), find_layers(model), [{"normal": normal[:, :20]}, {"normal": normal[:, 20:]}])


def test_the_loud_channel_is_divided_and_float_stays_what_it_was():
    model = small_model()
    equal = found_in(model)
    scales = equal.inputs["normal"]
    quiet = np.delete(scales, LOUD)
    assert scales[LOUD] > 20 * quiet.max()
    assert quiet.max() < 3 * quiet.min()
    exact = run(model, "a", "b")
    folded = equal.fold(model)
    for got, expected in zip(run(folded, "a", "b"), exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    by_name = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    assert by_name["scale"][LOUD] / np.delete(by_name["scale"], LOUD).mean() == pytest.approx(
        60 * quiet.mean() / scales[LOUD], rel=0.3
    )


def test_rounding_behind_it_costs_a_tenth():
    def error(x: np.ndarray, weight: np.ndarray) -> float:
        step = np.abs(x).max() / 127
        steps = np.abs(weight).max(0) / 127
        rounded = (np.rint(x / step) * step) @ (np.rint(weight / steps) * steps)
        return float(np.linalg.norm(rounded - x @ weight) / np.linalg.norm(x @ weight))

    model = small_model()
    (normal,) = run(small_model(outputs=("normal",)), "normal")
    weight = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "wa"))
    scales = found_in(model).inputs["normal"]
    assert error(normal / scales, weight * scales[:, None]) < 0.1 * error(normal, weight)


@pytest.mark.parametrize(
    "model",
    [
        small_model(helper.make_node("Relu", ["normal"], ["c"], "other")),
        small_model(helper.make_node("Add", ["x", "bias"], ["c"], "other")),
        small_model(tied=True),
        small_model(outputs=("a", "b", "normal")),
    ],
    ids=[
        "the output has another reader",
        "the bias has another reader",
        "the weight has two readers",
        "the output leaves the graph",
    ],
)
def test_what_others_read_is_left_alone(model):
    equal = found_in(model)
    assert not equal.inputs and not equal.factors
    np.testing.assert_array_equal(equal.of("normal"), [1])


def test_a_normalisation_without_a_bias_is_divided_by_its_scale_alone():
    model = small_model()
    del model.graph.node[0].input[2]
    equal = found_in(model)
    assert set(equal.factors) == {"scale", "wa", "wb"}
    np.testing.assert_allclose(equal.factors["scale"], 1 / equal.of("normal"), rtol=1e-6)
    for weight in ("wa", "wb"):
        np.testing.assert_array_equal(equal.factors[weight], equal.of("normal")[:, None])
    exact = run(model, "a", "b")
    for got, expected in zip(run(equal.fold(model), "a", "b"), exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_channels_that_are_alike_are_left_alone():
    model = small_model()
    even = RNG.uniform(-1, 1, (1, 40, K)).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name in ("wa", "wb"):
            tensor.CopyFrom(numpy_helper.from_array(np.sign(RNG.normal(0, 1, (K, N))).astype(np.float32), tensor.name))
    assert not find_equalization(model, Path(), find_layers(model), [{"normal": even}]).inputs


@pytest.mark.parametrize(
    "values", [np.zeros((1, 40, K), np.float32), np.eye(K, dtype=np.float32)[:1] * np.ones((1, 40, 1), np.float32)]
)
def test_silent_channels_divide_nothing_by_zero(values):
    model = small_model()
    equal = find_equalization(model, Path(), find_layers(model), [{"normal": values}])
    assert all(np.isfinite(scales).all() and (scales > 0).all() for scales in equal.inputs.values())


def test_a_channel_that_is_silent_here_keeps_room_for_other_clips():
    (normal,) = run(small_model(outputs=("normal",)), "normal")
    normal[..., 3] = 0
    model = small_model()
    scales = find_equalization(model, Path(), find_layers(model), [{"normal": normal}]).inputs["normal"]
    assert scales[3] > 0.1 * np.median(scales)


def test_scales_are_smoothquants_with_one_of_the_exponents_and_their_mean_is_one():
    """max|x|^a / max|W|^(1 - a) (arXiv:2211.10438, equation 4), of both products' weights, a tenth of the median at least."""
    (normal,) = run(small_model(outputs=("normal",)), "normal")
    normal = normal.copy()
    normal[..., 7] *= 1e-4  # all but silent
    model = small_model()
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in ("wa", "wb")]
    equal = find_equalization(model, Path(), find_layers(model), [{"normal": normal[:, :20]}, {"normal": normal[:, 20:]}])
    loud, heavy = np.abs(normal[0]).max(0), np.abs(np.concatenate(weights, 1)).max(1)
    loud, heavy = np.maximum(loud, 0.1 * np.median(loud)), np.maximum(heavy, 0.1 * np.median(heavy))
    found = np.log(equal.inputs["normal"].astype(np.float64))
    assert found.mean() == pytest.approx(0, abs=1e-5)
    fits = []
    for alpha in (0.35, 0.5, 0.65, 0.8):
        scales = np.log(loud**alpha / heavy ** (1 - alpha))
        fits.append(np.abs(scales - scales.mean() - found).max())
    assert min(fits) < 1e-4
    np.testing.assert_allclose(equal.factors["bias"], 1 / equal.inputs["normal"], rtol=1e-6)
    assert equal.inputs["normal"].dtype == np.float32
