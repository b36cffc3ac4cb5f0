"""benchmarks/gpu_speed.py: its arithmetic against torch's own count, the reusing encoder against a slow one, and a run on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_speed.py"
PATCH = 14


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def tower():
    """A tiny SigLIP in float32; biases and norms are no longer what an initialisation leaves."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=60, patch_size=PATCH
    )
    model = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def clip():
    """16 frames of 60 x 60 pixels, which is not a multiple of the patch, with a cut before frame 9."""
    from workload import moving_clip

    pixels = torch.from_numpy(moving_clip(16, 60))
    pixels[9:] = pixels[9:].flip(-1)
    return pixels


def test_without_reuse_the_encoder_is_transformers(tower, clip):
    from encoder_reuse import ReuseEncoder

    with torch.no_grad():
        expected = tower(clip, output_hidden_states=True).hidden_states[-1]
        encoder = ReuseEncoder(tower)
        rows, newest = encoder.reuse(clip, whole=8, keep=1.0)
        torch.testing.assert_close(encoder(clip), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rows[newest], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "whole", "keep", "rows"), [(16, 8, 0.25, 2 * 16 + 14 * 4), (9, 4, 0.4, 2 * 16 + 7 * 6), (4, 8, 0.25, 16 + 3 * 4)]
)
def test_with_reuse_it_is_the_slow_loop_over_frames(tower, clip, frames, whole, keep, rows):
    from encoder_reuse import ReuseEncoder

    clip = clip[:frames]
    with torch.no_grad():
        made, newest = ReuseEncoder(tower).reuse(clip, whole, keep)
        expected = _slow(tower, clip, whole, keep)
    assert made.shape == (rows, 32)
    torch.testing.assert_close(made[newest], expected, rtol=1e-5, atol=1e-5)


def test_the_first_frame_and_the_cut_are_whole(clip):
    from encoder_reuse import change, choose

    chosen = choose(change(clip, PATCH), whole=8, keep=0.25)
    assert chosen.rows[:32].tolist() == [*range(16), *range(9 * 16, 10 * 16)]
    assert chosen.others.tolist() == [frame for frame in range(16) if frame not in (0, 9)]
    assert len(set(chosen.rows.tolist())) == len(chosen.rows) == 2 * 16 + 14 * 4
    assert chosen.newest[0].tolist() == list(range(16))
    assert chosen.newest[9].tolist() == list(range(16, 32))


def test_qwen3_vl_frames_at_once_are_transformers_frame_by_frame(clip):
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
    assert block["left_out"]["ours, not compiled, encoder reuse"] == "RuntimeError: planted fault"
    assert len(block["ways"]) == 3
    assert "| tiny | 4 | ours, not compiled, encoder reuse | left out: RuntimeError: planted fault |" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path):
    out = tmp_path / "speed.json"
    options = ["--device", "cpu", "--size", "tiny", "tiny-qwen3-vl", "--frames", "4", "--rounds", "2", "--json", out]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["not_compiled"] is None
    assert [(block["size"], block["frames"], len(block["ways"])) for block in report["blocks"]] == [
        ("tiny", 4, 4),
        ("tiny-qwen3-vl", 4, 3),
    ]
    for block in report["blocks"]:
        assert block["graph_breaks"] == 0
        assert "it needs a GPU" in block["left_out"]["ours, kernel"]
        for way in block["ways"]:
            seconds = way["seconds"]
            assert {len(spent) for spent in seconds.values()} == {2} == {len(way["first"])}
            assert way["first"] == [sum(stages) for stages in zip(*seconds.values(), strict=True)]
            assert min(min(spent) for spent in seconds.values()) > 0
            assert way["decode_seconds"] > 0
            line = next(line for line in done.stdout.splitlines() if line.startswith(f"| {block['size']} | 4 | {way['name']} |"))
            assert float(line.split("|")[8]) == pytest.approx(1000 * float(np.median(way["first"])), rel=0.02, abs=0.6)
    assert "compress" not in report["blocks"][0]["ways"][0]["seconds"]
    assert [way["tokens"] for way in report["blocks"][0]["ways"]] == [65, 65, 64, 64]
    assert [way["tokens"] for way in report["blocks"][1]["ways"]] == [32, 32, 8]


def _counted(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def _slow(tower, clip: torch.Tensor, whole: int, keep: float) -> torch.Tensor:
    """Frame after frame and patch after patch, with the newest key and value of each patch in a dictionary."""
    frames, side = len(clip), clip.shape[-1] // PATCH
    patches, heads = side * side, tower.config.num_attention_heads
    cells = np.zeros((frames, 3, 2 * side, 2 * side))
    for row, column in np.ndindex(2 * side, 2 * side):
        cells[:, :, row, column] = clip[:, :, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7].double().mean((2, 3))
    differs = np.zeros((frames, patches))
    for frame in range(1, frames):
        for patch in range(patches):
            y, x = divmod(patch, side)
            one, before = (cells[f, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] for f in (frame, frame - 1))
            differs[frame, patch] = ((one - before) ** 2).mean()
    by_change = sorted(range(1, frames), key=lambda frame: -differs[frame].mean())
    complete = {0, *by_change[: max(1, frames // whole) - 1]}
    kept = math.floor(keep * patches)
    computed = [
        range(patches) if frame in complete else sorted(np.argsort(-differs[frame])[:kept].tolist()) for frame in range(frames)
    ]

    embedded = tower.embeddings(clip)
    state = {(frame, patch): embedded[frame, patch] for frame in range(frames) for patch in computed[frame]}
    for layer in tower.encoder.layers:
        keys, values, after = {}, {}, {}
        attention = layer.self_attn
        for frame in range(frames):
            for patch in computed[frame]:
                normal = layer.layer_norm1(state[frame, patch])
                keys[patch] = attention.k_proj(normal).view(heads, -1)
                values[patch] = attention.v_proj(normal).view(heads, -1)
            k, v = (torch.stack([newest[patch] for patch in range(patches)]) for newest in (keys, values))  # [P, A, C / A]
            for patch in computed[frame]:
                x = state[frame, patch]
                query = attention.q_proj(layer.layer_norm1(x)).view(heads, -1)
                scores = torch.einsum("ad,pad->ap", query, k) / math.sqrt(query.shape[1])
                x = x + attention.out_proj(torch.einsum("ap,pad->ad", scores.softmax(-1), v).flatten())
                after[frame, patch] = x + layer.mlp(layer.layer_norm2(x))
        state = after
    features, latest = [], {}
    for frame in range(frames):
        latest |= {patch: state[frame, patch] for patch in computed[frame]}
        features.append(torch.stack([latest[patch] for patch in range(patches)]))
    return torch.stack(features)
