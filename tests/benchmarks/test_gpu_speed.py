"""benchmarks/gpu_speed.py: its arithmetic against torch's own count, its table and its verdicts. test_gpu.py runs it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_speed.py"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_qwen3_vl_frames_at_once_are_transformers_frame_by_frame():
    import transformers
    from gpu_plan import SHAPES
    from qwen3_vl import Tower, config, patches
    from workload import moving_clip

    shape = SHAPES["tiny-qwen3-vl"]
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**config(shape))).eval()
    pixels = torch.from_numpy(moving_clip(6, shape.pixels))
    rows = patches(pixels, shape)
    # by hand: the third patch of a merged token is below the first
    below = pixels[2:4, :, 16:32, 0:16].transpose(0, 1).flatten()
    torch.testing.assert_close(rows[64 + 2], below, rtol=0, atol=0)
    with torch.no_grad():
        expected = model.get_video_features(rows, torch.tensor([[3, 8, 8]]))
        merged, deep = Tower(model.model.visual, shape.side)(rows)
    assert merged.shape == (3, 4, 4, 64)
    torch.testing.assert_close(merged.flatten(0, 2), expected.pooler_output[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deep[0], torch.cat([*expected.deepstack_features[0]]).view_as(deep[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "tiny-qwen3-vl"])
@pytest.mark.parametrize("frames", [4, 16])
def test_the_plan_counts_what_torch_counts(size, frames):
    from gpu_models import contestants, decode, make_model, prefill
    from gpu_plan import OURS, OWN, OWN_COMPILED, REUSE, SHAPES, expectations, kv_bytes, prefill_flop

    shape = SHAPES[size]
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # as plain products, which the counter knows
        model = make_model(shape, "cpu")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(parameter.isfinite().all() and (parameter != 0).float().mean() > 0.99 for parameter in model.parameters())
        ways = {way.name: way for way in contestants(model, shape, frames, "cpu", compiled=False).ways}
        reuse = ways.pop(REUSE.replace("kernel", "not compiled"), None)
        again = ways[OWN_COMPILED.replace("compiled", "not compiled")]
        torch.testing.assert_close(again.compress(again.encode()), ways[OWN].encode(), rtol=0.05, atol=0.05)
        run = {OWN: ways[OWN], OURS: ways[OURS.replace("compiled", "not compiled")], REUSE: reuse}
        for expected in (way for way in expectations(shape, frames) if run.get(way.way)):
            way = run[expected.way]
            tokens, made = _counted(way.encode)
            assert made == pytest.approx(expected.encode_flop, rel=1e-6), expected.way
            tokens = tokens if way.compress is None else way.compress(tokens)
            assert tokens.shape == (expected.tokens, shape.llm.width)
            assert way.tokens == expected.tokens
            output, made = _counted(lambda tokens=tokens: prefill(model, tokens))
            # the plain product computes all of the square; a rotary embedding may be written as a product, too
            assert made == pytest.approx(prefill_flop(shape, expected.tokens + 32, causal=1.0), rel=2e-3)
            cache = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
            assert sum(tensor.nbytes for tensor in cache) == kv_bytes(shape, expected.tokens + 32) == expected.kv_bytes
            assert sum(parameter.nbytes for parameter in model.parameters()) == expected.weight_bytes
        decode(model, output, 2)
        assert output.past_key_values.get_seq_length() == expected.tokens + 32 + 2


def test_the_plan_of_the_published_sizes():
    """Against figures worked out by hand, or published: parameters in billions."""
    from gpu_plan import SHAPES, WHOLE, expectations, parameters

    assert {name: round(parameters(shape) / 1e9, 1) for name, shape in SHAPES.items() if "tiny" not in name} == {
        "0.5b": 0.9,
        "7b": 8.0,
        "qwen3-vl-2b": 2.1,
    }
    own, _, ours, _, reuse = expectations(SHAPES["0.5b"], 32)
    assert (own.tokens, ours.tokens, own.rows) == (32 * 196 + 1, 32 * 13 * 13, 32 * 729)
    assert reuse.rows == 32 // WHOLE * 729 + 28 * 182
    # 26 layers, 4 products of 1152 x 1152, 2 of 1152 x 4304, 729 keys; the stem and the projector add less than a hundredth
    layers = 26 * 23_328 * (2 * 4 * 1152**2 + 2 * 2 * 1152 * 4304 + 2 * 2 * 729 * 1152)
    assert layers < own.encode_flop < 1.01 * layers
    assert expectations(SHAPES["qwen3-vl-2b"], 64)[2].tokens == 32 * 49


def test_the_plan_needs_no_torch(tmp_path):
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, SCRIPT, "--plan", "--frames", "8", "32", "--tflops", "100", "--bandwidth", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == (["0.5b"] * 5 + ["7b"] * 5 + ["qwen3-vl-2b"] * 4) * 2
    assert [row[1] for row in rows[1:]] == ["32"] * 14 + ["8"] * 14
    row = dict(zip(rows[0], rows[1], strict=True))
    assert float(row["encode ms"]) == pytest.approx(float(row["encode TFLOP"]) / 100 * 1000, rel=0.01)


def test_a_way_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
    import gpu_models
    import gpu_speed

    def broken(*_args, **_kwargs):
        raise RuntimeError("planted\nfault")

    monkeypatch.setattr(gpu_models.ReuseEncoder, "reuse", broken)
    out = tmp_path / "speed.json"
    options = ["--device", "cpu", "--size", "tiny", "--frames", "4", "--rounds", "1", "--no-compile", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", *options])
    assert gpu_speed.main() == 0
    (block,) = json.loads(out.read_text())["blocks"]
    assert block["left_out"]["st-gridpool, not compiled, encoder reuse"] == "RuntimeError: planted fault"
    assert len(block["ways"]) == 3
    assert (
        "| tiny | 4 | st-gridpool, not compiled, encoder reuse | left out: RuntimeError: planted fault |" in capsys.readouterr().out
    )


def test_decode_is_printed_once_for_each_number_of_tokens_and_the_kernels_difference_below():
    import gpu_speed

    def way(name: str, tokens: int) -> dict:
        stages = {"encode": [0.1], "prefill": [0.2]}
        return {"name": name, "tokens": tokens, "seconds": stages, "first": [0.3], "decode_seconds": 2.0, "peak_bytes": None}

    block = {"size": "7b", "frames": 32, "left_out": {"e": "why"}, "ways": [way("a", 9), way("b", 9), way("c", 4), way("d", 4)]}
    block["kernel_difference"] = 0.0117
    *rows, left_out, kernel = gpu_speed.rows_of(block)
    assert [row[8] for row in rows] == [16.0, "", 16.0, ""]
    assert left_out == ["7b", "32", "e", "left out: why"]
    assert kernel[2].endswith("1.2e-02, allowed 1.6e-02")


@pytest.mark.parametrize(
    ("difference", "right"),
    [
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param(0.0, True, marks=pytest.mark.slow),
        (0.0159, True),
        (0.0161, False),
        (math.nan, False),
        pytest.param(math.inf, False, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_that_is_too_far_from_the_compiled_module_fails_the_run(monkeypatch, capsys, difference, right):
    import gpu_speed

    monkeypatch.setattr(gpu_speed, "_difference", lambda *_: difference)
    options = ["--device", "cpu", "--size", "tiny", "--frames", "4", "--rounds", "1", "--no-compile"]
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", *options])
    assert gpu_speed.main() == (0 if right else 1)
    assert ("**WRONG**" in capsys.readouterr().out) == (not right)


def test_transformers_pooling_is_compiled_as_this_projects_is(monkeypatch):
    import gpu_models
    from gpu_plan import OURS, OWN_COMPILED, SHAPES

    def broken(*_args):
        raise RuntimeError("planted")

    compiled = []
    monkeypatch.setattr(gpu_models, "_compiled", lambda run: compiled.append(run) or broken)
    with torch.inference_mode():
        shape = SHAPES["tiny"]
        ways = {way.name: way for way in gpu_models.contestants(gpu_models.make_model(shape, "cpu"), shape, 4, "cpu", True).ways}
    assert len(compiled) == 2
    assert ways[OWN_COMPILED].compress is broken and ways[OURS].compress is broken


def _counted(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()
