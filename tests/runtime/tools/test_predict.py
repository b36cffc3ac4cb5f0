"""The cost model: operations against a count by hand from the model's config, and a roofline that follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from manifests import bundle_of
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from export.demo import CHECKPOINT
from runtime.__main__ import main
from runtime.core.errors import EngineError
from runtime.tools import predict
from runtime.tools.predict import MACHINES, Machine
from runtime.tools.work import Work, decode_work, prefill_work, vision_work

CONFIG = json.loads((CHECKPOINT / "config.json").read_text())


def encoder_operations(frames: int) -> float:
    """Of SigLIP and projector, two a multiply-add."""
    vision, hidden = CONFIG["vision_config"], CONFIG["text_config"]["hidden_size"]
    width, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    layer = patches * (4 * width * width + 2 * width * mlp) + 2 * patches * patches * width
    whole = patches * 3 * patch * patch * width + vision["num_hidden_layers"] * layer + patches * (width * hidden + hidden * hidden)
    return 2.0 * frames * whole


def decoder_weights() -> tuple[int, int]:
    text = CONFIG["text_config"]
    width, mlp, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    kv = width * text["num_key_value_heads"] // text["num_attention_heads"]
    return layers * (2 * width * width + 2 * width * kv + 3 * width * mlp), text["vocab_size"] * width


def test_operations_are_those_of_the_config(bundle):
    work = vision_work(bundle)
    assert sum(work.operations.values()) == pytest.approx(encoder_operations(16), rel=0.01)
    layers, head = decoder_weights()
    text = CONFIG["text_config"]
    attention = 4 * 300 * text["hidden_size"] * text["num_hidden_layers"]
    assert decode_work(bundle, 300).operations == {"fp32": pytest.approx(2 * (layers + head) + attention)}
    assert decode_work(bundle, 300).bytes > 4 * (layers + head)
    width, deep = text["hidden_size"], text["num_hidden_layers"] - 1  # layers whose positions all go on
    last = width * width + 3 * width * text["intermediate_size"]  # of the last layer, behind its cache
    scores = sum(4 * ((stop - start) * deep + 1) * stop * width for start, stop in ((0, 256), (256, 512), (512, 700)))
    expected = 2 * (700 * (layers - last) + 3 * (head + last)) + scores
    assert prefill_work(bundle, 700).operations["fp32"] == pytest.approx(expected)


def test_a_product_is_one_of_int8_where_both_its_operands_are(tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    g (float[2, 8] x) => (float[2, 5] y) {
        x8 = QuantizeLinear(x, scale, zero)
        rounded = DequantizeLinear(x8, scale, zero)
        first = DequantizeLinear(w1, scale, zero)
        a = MatMul(rounded, first)
        second = DequantizeLinear(w2, scale, zero)
        y = MatMul(a, second)
    }""")
    constants = {"scale": np.float32(0.5), "zero": np.int8(0), "w1": np.ones((8, 4), np.int8), "w2": np.ones((4, 5), np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.save(model, tmp_path / "vision.onnx")
    manifest = SimpleNamespace(precision="int8", patch_tokens=3, hidden_size=7)
    work = vision_work(SimpleNamespace(model=lambda graph: tmp_path / f"{graph}.onnx", manifest=manifest))
    assert work.operations == {"int8": 2 * 2 * 4 * 8, "fp32": 2 * 2 * 5 * 4}
    weights, clip, features = 4 + 1 + 8 * 4 + 4 * 5, 2 * 8 * 4, 3 * 7 * 4
    assert work.bytes == weights + clip + 2 * features  # features are written and read


def test_a_stage_takes_the_longer_of_arithmetic_and_memory(bundle):
    slow_memory = Machine("m", {"fp32": 1e15}, 1e6, 0.5, "test")
    slow_arithmetic = Machine("a", {"fp32": 1e6}, 1e15, 1.0, "test")
    work = decode_work(bundle, 10)
    stages = [predict._stage("decode", work, machine) for machine in (slow_memory, slow_arithmetic)]
    assert [stage.bound for stage in stages] == ["memory", "arithmetic"]
    assert stages[0].seconds == pytest.approx(work.bytes / 1e6 / 0.5)
    assert stages[1].seconds == pytest.approx(work.operations["fp32"] / 1e6)


@pytest.mark.parametrize("machine", ["cpu", *MACHINES])
def test_every_machine_predicts_and_says_that_it_does(bundle_path, machine, capsys):
    assert main(["inspect", str(bundle_path), "--predict", machine]) == 0
    out = capsys.readouterr().out
    assert out.startswith("prediction, not a measurement") and "decode one token" in out
    assert main(["inspect", str(bundle_path), "--predict", machine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rates, bandwidth, reached = (found["machine"][name] for name in ("rates", "bandwidth", "reached"))
    encode, prefill, first, decode = found["stages"]
    for stage in (encode, prefill, decode):
        seconds = max(stage["operations"] / rates["fp32"], stage["bytes"] / bandwidth) / reached
        assert stage["seconds"] == pytest.approx(seconds)
    assert first["seconds"] == encode["seconds"] + prefill["seconds"]


def test_an_unknown_machine_is_refused(bundle):
    with pytest.raises(EngineError, match=r'no machine "oring".*orin'):
        predict.predict(bundle, "oring")


def test_the_help_names_the_machines(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert "--predict cpu|orin|thor|h200 " in " ".join(capsys.readouterr().out.split())
    assert list(MACHINES) == ["orin", "thor", "h200"]


@pytest.mark.parametrize(
    ("name", "fp32", "fp16", "int8", "bandwidth"),
    [  # dense, in 10^12 a second; GB/s. Orin: 2048 cores at 1.3 GHz, 170 / 2 / 2; Thor: 2560 at 1.57 GHz, 2070 / 8 and / 4
        ("orin", 2 * 2048 * 1.3e-3, 42.5, 85, 204.8),
        ("thor", 2 * 2560 * 1.57e-3, 2070 / 8, 2070 / 4, 273),
        ("h200", 67, 989, 1979, 4800),
    ],
)
def test_rates_are_those_of_the_sources_and_half_of_them_is_expected(name, fp32, fp16, int8, bandwidth):
    machine = MACHINES[name]
    assert machine.rates == pytest.approx({"fp32": fp32 * 1e12, "fp16": fp16 * 1e12, "int8": int8 * 1e12}, rel=0.01)
    assert (machine.bandwidth, machine.reached) == (bandwidth * 1e9, 0.5)


def test_where_both_take_equally_long_arithmetic_is_the_bound():
    machine = Machine("m", {"fp16": 50.0, "int8": 100.0}, 20.0, 0.5, "test")
    stage = predict._stage("s", Work({"fp16": 100.0, "int8": 200.0}, 80.0), machine)
    assert stage == predict.Stage("s", 8.0, "arithmetic", 300.0, 80.0)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["vision.onnx"], ["encode and compress 16 frames"]),
        (["llm/decoder.onnx"], ["prefill 1,032 positions", "decode one token"]),
        (
            ["vision.onnx", "llm/decoder.onnx"],
            ["encode and compress 16 frames", "prefill 1,032 positions", "time to first token", "decode one token"],
        ),
        (["vision.encoder.onnx"], []),
    ],
)
def test_stages_are_those_of_the_graphs_that_are_there(monkeypatch, files, names):
    """Encoding reads 16 bytes, a prefill as many as it has positions and a token a tenth, at 2 bytes a second; they do 3, 5 and 7 operations."""
    monkeypatch.setitem(MACHINES, "test", Machine("m", {"fp32": 1e9}, 4.0, 0.5, "test"))
    monkeypatch.setattr(predict, "vision_work", lambda bundle: Work({"fp32": 3.0}, 16.0))
    monkeypatch.setattr(predict, "prefill_work", lambda bundle, positions: Work({"fp32": 5.0}, positions))
    monkeypatch.setattr(predict, "decode_work", lambda bundle, positions: Work({"fp32": 7.0}, positions / 10))
    stages = predict.predict(bundle_of(*files, frames=16, tokens_per_clip=1000), "test").stages
    expected = {
        "encode and compress 16 frames": (8.0, "memory", 3.0, 16.0),
        "prefill 1,032 positions": (516.0, "memory", 5.0, 1032.0),
        "time to first token": (524.0, "", 8.0, 1048.0),
        "decode one token": (51.6, "memory", 7.0, 103.2),
    }
    assert stages == [predict.Stage(name, *expected[name]) for name in names]


def test_the_text_is_a_table_with_numbers_flush_right_and_where_the_rates_are_from():
    machine = Machine("a board", {"fp32": 2e12, "int8": 8e12}, 204.8e9, 0.5, "a brief")
    stages = [predict.Stage("decode one token", 0.012345, "memory", 1.25e12, 2.5e9), predict.Stage("all", 12.0, "", 4e8, 3e5)]
    assert predict.text(predict.Prediction(machine, stages)).splitlines() == [
        "prediction, not a measurement: a board, fp32 2,000 GFLOP/s, int8 8,000 GFLOP/s, 205 GB/s, of which 50% are assumed to be reached",
        "(a brief)",
        "stage             seconds  bound by    GFLOP     MB",
        "────────────────  ───────  ────────  ───────  ─────",
        "decode one token   0.0123  memory    1,250.0  2,500",
        "all                    12                0.4      0",
    ]
    own = predict.text(predict.Prediction(replace(machine, reached=1.0), stages)).splitlines()
    assert own[0].endswith("205 GB/s, as measured")


class Engines:
    """Stands in for ONNX Runtime's engine: notes what was loaded and run, and what was closed."""

    def __init__(self):
        self.loaded, self.fed, self.closed = [], [], 0

    def load(self, content):
        self.loaded.append(content)
        return self

    def run(self, feeds):
        self.fed.append(feeds)

    def close(self):
        self.closed += 1


@pytest.fixture
def engines(monkeypatch):
    """Runs take a quarter of a second."""
    engines = Engines()
    monkeypatch.setattr("runtime.engine.onnx.OnnxEngine", engines)
    monkeypatch.setattr(predict.timeit, "repeat", lambda run, **times: [9.0, run() or 0.25])
    return engines


def test_this_cpu_is_measured_by_a_product_of_an_encoders_size_in_each_precision(monkeypatch, engines):
    """SigLIP's: 27 x 27 patches, 1152 features, 4304 of its MLP."""
    made = []
    monkeypatch.setattr(
        predict, "_product", lambda *given: made.append(given) or SimpleNamespace(SerializeToString=lambda: given[0])
    )
    monkeypatch.setattr(predict, "_read_rate", lambda: 7.0)
    machine = predict.measured()
    assert made == [(precision, 27 * 27, 1152, 4304) for precision in ("fp32", "int8")]
    assert engines.loaded == ["fp32", "int8"] and engines.closed == 2
    assert [feeds["x"].shape for feeds in engines.fed] == [(1, 729, 1152)] * 2 and engines.fed[0]["x"].dtype == np.float32
    rate = 2 * 729 * 1152 * 4304 / 0.25
    assert machine.rates == pytest.approx({"fp32": rate, "fp16": rate, "int8": rate})
    assert (machine.name, machine.bandwidth, machine.reached) == ("this CPU", 7.0, 1.0)


def test_memory_is_measured_by_a_row_times_a_matrix(engines):
    assert predict._read_rate(6) == 6 * 6 * 4 / 0.25
    (feeds,) = engines.fed
    assert {name: array.shape for name, array in feeds.items()} == {"x": (1, 6), "w": (6, 6)} and engines.closed == 1
    model = onnx.load_from_string(engines.loaded[0])
    onnx.checker.check_model(model, full_check=True)
    assert [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node] == [("MatMul", ["x", "w"], ["y"])]
    assert not model.graph.initializer
    shape = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*model.graph.input, *model.graph.output)]
    assert shape == [[1, 6], [6, 6], [1, 6]]


def test_the_product_of_int8_is_one_of_numbers_that_both_were_rounded():
    x = np.array([[[0.5, -0.31, 3.0], [10.0, -10.0, 0.02]]], np.float32)
    exact, rounded = predict._product("fp32", 2, 3, 5), predict._product("int8", 2, 3, 5)
    for model in (exact, rounded):
        onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: numpy_helper.to_array(tensor) for model in (exact, rounded) for tensor in model.graph.initializer}
    assert held["w"].shape == held["w8"].shape == (3, 5) and held["w8"].dtype == np.int8 and np.unique(held["w8"]).size > 5
    (got,) = ReferenceEvaluator(exact).run(None, {"x": x})
    np.testing.assert_allclose(got, x @ held["w"], rtol=1e-5)
    steps = np.array([[[17, -10, 100], [127, -128, 1]]])  # of 0.03, within a byte
    (got,) = ReferenceEvaluator(rounded).run(None, {"x": x})
    np.testing.assert_allclose(got, 0.03 * steps @ (0.01 * held["w8"]), rtol=1e-4)


def test_the_fastest_of_five_calls_counts_after_one_to_warm_up(monkeypatch, engines):
    clock, calls = [100.0], iter([1.0, 9.0, 7.0, 5.0, 8.0, 6.0])  # seconds; a seventh call would fail
    monkeypatch.undo()
    monkeypatch.setattr("runtime.engine.onnx.OnnxEngine", engines)
    monkeypatch.setattr(engines, "run", lambda feeds: clock.__setitem__(0, clock[0] + next(calls)))
    monkeypatch.setattr(predict.time, "perf_counter", lambda: clock[0])
    assert predict._seconds(onnx.ModelProto(), {}) == 5.0
    assert next(calls, None) is None
