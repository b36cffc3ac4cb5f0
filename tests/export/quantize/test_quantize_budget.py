"""The budget: what is over it raises the worst layers a step, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from refusal import naming

from export.quantize import llm, llm_precision
from export.quantize.layers import find_layers, worst
from runtime.core.errors import ExportError
from runtime.tools.compare import relative_error


@pytest.mark.parametrize(
    ("text", "expected"), [("fp16", ("fp16", 0)), ("int8", ("int8", 0)), ("int4", ("int4", 32)), ("int4:128", ("int4", 128))]
)
def test_precisions_of_the_llm(text, expected):
    assert llm_precision(text) == expected


@pytest.mark.parametrize("text", ["int4:", "int4:48", "int4:0", "int8:32", "int2", "", "INT4"])
def test_other_precisions_are_refused(text):
    with pytest.raises(ExportError, match=naming("--llm-precision", f'"{text}"', "fp32", "fp16", "int8", "int4", "int4:BLOCK")):
        llm_precision(text)


def test_the_worst_layers_go_first_a_twelfth_then_twice_as_many():
    errors = {f"layer{n}": n / 100 for n in range(36)}
    assert worst(errors, errors) == ["layer35", "layer34", "layer33"]
    assert worst(errors, {"layer2", "layer9"}) == ["layer9", "layer2"]
    assert worst({"a": 0.1, "b": 0.2}, ["a", "b"]) == ["b"]
    assert len(worst(errors, errors, rounds=2)) == 12


def decoder(path: Path) -> None:
    """Write three products of one input, whose weights int4 and int8 round much, a little and not at all."""
    rng = np.random.default_rng(0)
    whole = rng.choice(np.array([-8, 0], np.float32), (32, 4))
    whole[::16] = -8
    noise = rng.normal(size=(32, 4)).astype(np.float32)
    weights = {"much": noise, "little": whole + noise / 100, "exact": whole}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}/y"], name) for name in weights]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 32])],
        [helper.make_tensor_value_info(f"{name}/y", 1, [1, 3, 4]) for name in weights],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


def steps(levels: str) -> dict[str, str]:
    return dict(zip(("much", "little", "exact"), [{"4": "int4", "8": "int8", "F": "fp32"}[level] for level in levels], strict=True))


@pytest.mark.parametrize(
    ("precision", "budget", "errors", "tried"),
    [
        ("int4", 0.125, [0.5, 0.25, 0.125], ["444", "844", "884"]),
        ("int4", None, [0.5, 0.25, 0.1875, 0.125], ["444", "844", "884", "888"]),
        ("int8", None, [0.125, 0.0625, 0.03125], ["888", "F88", "FF8"]),
        ("int4", 0.1, [0.5] * 6, ["444", "844", "884", "888", "FF8", "FFF"]),  # no layer is left: nothing more can be done
    ],
)
def test_layers_go_up_a_step_until_the_whole_is_within_the_budget(monkeypatch, tmp_path, precision, budget, errors, tried):
    decoder(tmp_path / "decoder.onnx")
    x = np.random.default_rng(1).normal(size=(1, 3, 32)).astype(np.float32)
    logits = iter([1.0, *(1 + error for error in errors)])
    seen: list[dict[str, str]] = []
    measured: list[tuple[int, ...]] = []
    loads: list[dict[str, Path]] = []
    monkeypatch.setattr(llm, "OnnxEngine", SimpleNamespace(load=lambda *arguments, **more: loads.append(more)))
    monkeypatch.setattr(llm, "_run", lambda engine, prompt: measured.append(prompt.shape) or {"x": x})
    monkeypatch.setattr(llm, "_logits", lambda engine, prompts: np.array([[next(logits)]]))
    monkeypatch.setattr(llm, "_quantized", lambda model, layers, chosen, block: seen.append(dict(chosen)) or model)
    _, report = llm.quantize_llm(tmp_path / "decoder.onnx", precision, 16, [np.zeros((1, 600, 32))], "clips", budget)
    assert seen == [steps(levels) for levels in [*tried, tried[-1]]]
    assert [(layer.layer, layer.precision) for layer in report.layers] == list(steps(tried[-1]).items())
    assert measured == [(1, 512, 32)] and loads[0] == {"data": tmp_path}
    expected = {"int4": 0.15, "int8": 0.05}[precision] if budget is None else budget
    assert (report.precision, report.error, report.budget, report.calibration) == (precision, errors[-1], expected, "clips")
    of = {layer.layer: layer.error for layer in report.layers}
    assert of["much"] > of["little"] > 1e-4 > 1e-6 > of["exact"]


def test_each_layer_is_written_in_the_precision_that_was_chosen_for_it(tmp_path):
    decoder(tmp_path / "decoder.onnx")
    model = onnx.load(str(tmp_path / "decoder.onnx"))
    written = llm._quantized(model, find_layers(model), {"much": "int8", "little": "int4", "exact": "fp32"}, 16)
    kinds = {tensor.name: tensor.data_type for tensor in written.graph.initializer}
    read = {node.output[0]: node for node in written.graph.node}
    sources = {}
    for name in ("much", "little", "exact"):
        weight = next(node for node in written.graph.node if node.op_type == "MatMul" and f"{name}/y" in node.output).input[1]
        sources[name] = kinds[read[weight].input[0] if weight in read else weight]
    assert sources == {"much": onnx.TensorProto.INT8, "little": onnx.TensorProto.INT4, "exact": onnx.TensorProto.FLOAT}


def test_the_relative_error_is_of_the_whole():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_every_block_that_is_offered_is_taken_and_its_neighbours_are_not(block):
    assert llm_precision(f"int4:{block}") == ("int4", block)
    for other in (block - 1, block + 1, 2 * 256):
        with pytest.raises(ExportError, match=naming(f'"int4:{other}"', 16, 32, 64, 128, 256)):
            llm_precision(f"int4:{other}")


@pytest.mark.parametrize(
    ("layers", "left", "rounds", "count"),
    [(36, 36, 0, 3), (36, 36, 1, 6), (36, 36, 3, 24), (36, 36, 4, 36), (35, 35, 0, 2), (11, 11, 0, 1), (12, 12, 1, 2), (5, 5, 0, 1), (36, 2, 1, 2)],
)  # fmt: skip
def test_a_twelfth_of_all_layers_is_raised_and_at_least_one(layers, left, rounds, count):
    errors = {f"layer{n}": n / 100 for n in range(layers)}
    assert worst(errors, list(errors)[:left], rounds) == [f"layer{n}" for n in range(left)][::-1][:count]
    if not rounds:
        assert worst(errors, list(errors)[:left]) == worst(errors, list(errors)[:left], 0)


class FakeEngine:
    """Its logits are the sums of its prompt."""

    inputs = tuple(
        SimpleNamespace(name=name) for name in ("inputs_embeds", "position_ids", "past_key_values.0.key", "attention_mask")
    )

    def __init__(self):
        self.closed = False

    def new_state(self, pairs):
        return pairs

    def run(self, feeds, state):
        self.feeds, self.state = feeds, state
        return {"logits": feeds["inputs_embeds"].cumsum(1)}

    def close(self):
        self.closed = True


def test_a_prompt_is_run_from_its_first_position_with_caches_of_its_own():
    engine = FakeEngine()
    llm._run(engine, np.ones((1, 3, 2), np.float16))
    assert {name: (value.dtype, value.tolist()) for name, value in engine.feeds.items()} == {
        "inputs_embeds": (np.float32, [[[1, 1]] * 3]),
        "position_ids": (np.int64, [[0, 1, 2]]),
        "attention_mask": (np.int64, [[1, 1, 1]]),
    }
    assert engine.state == {"past_key_values.0.key": "present.0.key"}


def test_logits_are_those_of_each_prompts_last_position():
    engine = FakeEngine()
    prompts = [np.full((1, 3, 2), 1.0), np.full((1, 5, 2), 2.0)]
    assert llm._logits(engine, prompts).tolist() == [[3, 3], [10, 10]] and engine.closed


def test_an_int4_block_is_rounded_to_eighths_of_its_largest_magnitude():
    column = [-8, 7, 3.4, 3.6, 0.5, 0, -0.4, 1.5, *[0] * 8]  # steps of 1
    mirrored = [8, -7, -3.4, -3.6, -0.5, 0, 0.4, -1.5, *[0] * 8]  # steps of -1
    high = [4, 4, -4, 1, *[0] * 12]  # steps of -0.5, of which 7 stand for the least
    weight = np.array([[*column, *[0] * 16], [*mirrored, *high]], np.float32).T
    rounded = llm._rounded(weight, "int4", 16)
    assert rounded[:8, 0].tolist() == [-8, 7, 3, 4, 0, 0, 0, 2] and rounded[:8, 1].tolist() == [8, -7, -3, -4, 0, 0, 0, -2]
    assert rounded[16:20, 1].tolist() == [4, 4, -3.5, 1] and not rounded[16:, 0].any()
    assert rounded.shape == weight.shape
    np.testing.assert_allclose(llm._rounded(weight, "int8", 16)[:, 0], np.rint(weight[:, 0] / (8 / 127)) * (8 / 127), rtol=1e-6)
