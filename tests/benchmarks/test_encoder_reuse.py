"""benchmarks/encoder_reuse.py against transformers' tower and against a slow loop over frames and patches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

PATCH = 14


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))


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


def test_the_first_frame_and_the_cut_are_full_frames(clip):
    from encoder_reuse import change, choose

    chosen = choose(change(clip, PATCH), whole=8, keep=0.25)
    assert chosen.rows[:32].tolist() == [*range(16), *range(9 * 16, 10 * 16)]
    assert chosen.others.tolist() == [frame for frame in range(16) if frame not in (0, 9)]
    assert len(set(chosen.rows.tolist())) == len(chosen.rows) == 2 * 16 + 14 * 4
    assert chosen.newest[0].tolist() == list(range(16))
    assert chosen.newest[9].tolist() == list(range(16, 32))


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
