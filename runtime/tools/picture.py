"""What a plot of one clip shows: norms and NSP weights of its tokens, the frames that PTG replaces.

The norms are those of the graph itself: the stages are read as outputs from ONNX Runtime.

T frames, H, W patch rows and columns, h, w pixels, C, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plugins.op import OPTIONS, NSPOptions
from plugins.schedule import summary_levels
from plugins.spec import parse, unique_names
from runtime.bundle import Bundle
from runtime.core.errors import BundleError
from runtime.engine import EngineOptions
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor, load_clip
from runtime.tools.stages import first_compression, run_stages


@dataclass(frozen=True)
class Picture:
    """A clip and what compression does to it.

    norms     [T, H, W] of the tokens just before compression
    weights   [T, H, W] share of each token in its NSP window, nan where the window is cut off; None without NSP
    levels    {frame: levels of PTG, from 1, that write into it, in order}
    """

    clip: Clip
    norms: np.ndarray
    weights: np.ndarray | None
    window: int
    levels: dict[int, list[int]]
    title: str
    subtitle: str
    spec: str


def look(bundle: Bundle, video: str | Path, options: EngineOptions = EngineOptions()) -> Picture:
    """Run the video through the graph and take norms and weights from its stages."""
    manifest = bundle.manifest
    names = [stage.name for stage in manifest.stages]
    first = first_compression(names)
    if first == 0:
        raise BundleError(f"{bundle.path} lists no stage before its compression; export it again")
    spec = parse(manifest.compression.spec, OPTIONS, others=True)
    kinds = [stage.name for stage in spec]
    before = [names[names.index(f"compress/{name}") - 1] for name in unique_names(kinds)]

    pixels, clip = load_clip(video, manifest.frames, Preprocessor(manifest.preprocessing))
    tensors = run_stages(bundle, pixels, options, {names[first - 1], *before}).tensors
    levels = [
        summary_levels(manifest.frames, stage.options.sizes, stage.options.strides) if stage.name == "ptg" else {} for stage in spec
    ]
    seen = [tensors[name] for name in before]  # what each stage sees of the clip
    for index in range(1, len(spec)):
        if kinds[index - 1 : index + 1] == ["ptg", "nsp"]:
            # PTG passes its summaries alone: NSP weighs them in the places of the frames that they replace
            frames = _grid(seen[index - 1], manifest.grid).copy()
            frames[sorted(levels[index - 1])] = seen[index]
            seen[index] = frames

    def of_frames(kind: str) -> int | None:
        """The first stage of a kind, if it sees the sampled frames and not another number of them."""
        index = kinds.index(kind) if kind in kinds else None
        return index if index is not None and len(seen[index]) == manifest.frames else None

    nsp, ptg = of_frames("nsp"), of_frames("ptg")
    pool = spec[nsp].options if nsp is not None else NSPOptions()
    norms = token_norms(_grid(tensors[names[first - 1]], manifest.grid), pool.order)
    weights = nsp_weights(token_norms(_grid(seen[nsp], manifest.grid), pool.order), pool) if nsp is not None else None
    saved = manifest.patch_tokens / manifest.tokens_per_clip
    return Picture(
        clip=clip,
        norms=norms,
        weights=weights,
        window=pool.window if nsp is not None else 0,
        levels=levels[ptg] if ptg is not None else {},
        title=f"{manifest.patch_tokens:,} patch tokens → {manifest.tokens_per_clip:,} visual tokens  ({saved:.1f}:1)",
        subtitle=f"{clip.path.name}: {manifest.frames} of {clip.total} frames   ·   {manifest.checkpoint.id}   ·   "
        f"{manifest.compression.place.replace('-', ' the ')}",
        spec=manifest.compression.spec,
    )


def token_norms(tokens: np.ndarray, order: float = 2) -> np.ndarray:
    """||x||_p / D^(1/p) of tokens [..., D], float32: [...]."""
    magnitude = np.abs(tokens.astype(np.float32))
    if np.isinf(order):
        return magnitude.max(axis=-1)
    return np.mean(magnitude**order, axis=-1) ** (1 / order)


def nsp_weights(norms: np.ndarray, nsp: NSPOptions) -> np.ndarray:
    """[T, H, W] norms -> each token's softmax weight in its window; nan for a remainder that no window covers."""
    window, ring = nsp.window, nsp.padding
    logits = np.pad(norms * nsp.temperature, ((0, 0), (ring, ring), (ring, ring)))  # a zero token's norm is 0
    frames, rows, columns = logits.shape[0], logits.shape[1] // window, logits.shape[2] // window
    tiles = logits[:, : rows * window, : columns * window].reshape(frames, rows, window, columns, window)
    shares = np.exp(tiles - tiles.max(axis=(2, 4), keepdims=True))
    shares /= shares.sum(axis=(2, 4), keepdims=True)
    weights = np.full(logits.shape, np.nan, np.float32)
    weights[:, : rows * window, : columns * window] = shares.reshape(frames, rows * window, columns * window)
    return weights[:, ring : ring + norms.shape[1], ring : ring + norms.shape[2]]


def _grid(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[T, H*W, C] or [T, H', W', C] -> [T, rows, columns, C]."""
    return tokens.reshape(len(tokens), *grid, -1) if tokens.ndim == 3 else tokens
