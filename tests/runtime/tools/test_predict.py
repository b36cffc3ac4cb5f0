"""The cost model: operations against a count by hand from the model's config, and a roofline that follows from them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from export.demo import CHECKPOINT
from runtime.__main__ import main
from runtime.errors import EngineError
from runtime.tools import predict
from runtime.tools.work import decode_work, prefill_work, vision_work

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
    slow_memory = predict.Machine("m", {"fp32": 1e15}, 1e6, 0.5, "test")
    slow_arithmetic = predict.Machine("a", {"fp32": 1e6}, 1e15, 1.0, "test")
    work = decode_work(bundle, 10)
    stages = [predict._stage("decode", work, machine) for machine in (slow_memory, slow_arithmetic)]
    assert [stage.bound for stage in stages] == ["memory", "arithmetic"]
    assert stages[0].seconds == pytest.approx(work.bytes / 1e6 / 0.5)
    assert stages[1].seconds == pytest.approx(work.operations["fp32"] / 1e6)


@pytest.mark.parametrize("machine", ["cpu", *predict.MACHINES])
def test_every_machine_predicts_and_says_that_it_does(bundle_path, machine, capsys):
    assert main(["inspect", str(bundle_path), "--predict", machine]) == 0
    out = capsys.readouterr().out
    assert out.startswith("prediction, not a measurement") and "decode one token" in out
    assert main(["inspect", str(bundle_path), "--predict", machine, "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert all(stage["seconds"] > 0 for stage in stages.values()) and len(stages) == 4


def test_an_unknown_machine_is_refused(bundle):
    with pytest.raises(EngineError, match=r'no machine "oring".*orin'):
        predict.predict(bundle, "oring")


def test_the_help_names_the_machines(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert "--predict cpu|orin|thor|h200 " in " ".join(capsys.readouterr().out.split())
    assert list(predict.MACHINES) == ["orin", "thor", "h200"]
