"""POST /v1/video/tokens: a clip's compressed tokens, for clients that run their own LLM; /v1/video/inspect: what the page shows.

N visual tokens, D hidden.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.op import OPTIONS
from plugins.schedule import summary_levels
from plugins.spec import parse
from runtime.bundle import Bundle
from runtime.core.errors import UserError, missing_package
from runtime.server.clip_encoder import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.memory import Held
from runtime.server.models import ServedModel
from runtime.server.request_clips import check_frames, encode, stored
from runtime.server.schema import MediaUrl, VideoRequest
from runtime.server.state import State

CONTENT_TYPES = {"safetensors": "application/octet-stream", "npz": "application/octet-stream"}


@dataclass
class Job:
    """A request as the server works on it; asked: its clip, until that is a file."""

    model: str
    asked: list[MediaUrl]
    format: str
    dtype: str

    @classmethod
    def of(cls, request: VideoRequest) -> Job:
        asked = [media for media in (request.video_url, request.input_video) if media is not None]
        if len(asked) != 1:
            raise ApiError(400, "expected one clip, as video_url or as input_video", "invalid_value", "video_url")
        return cls(request.model, asked, request.format, request.dtype)


async def tokens(state: State, request: Job, deadline: float, held: Held) -> tuple[bytes, dict[str, str]]:
    """(the file, headers that describe it)."""
    model, clip = await _clip(state, request, deadline, held)
    array = clip.tokens.astype(request.dtype)
    if not np.isfinite(array).all():
        raise ApiError(422, "the tokens are out of float16's range; ask for dtype float32", "not_finite", "dtype")
    manifest = model.bundle.manifest
    metadata = {
        "bundle": model.encoder.identity,
        "spec": manifest.compression.spec,
        "tokens_in": str(manifest.patch_tokens),
        "tokens_out": str(len(array)),
        "frames": json.dumps(clip.frames),
        "timestamps": json.dumps([round(time, 6) for time in clip.timestamps]),
    }
    headers = {f"x-gridpool-{name.replace('_', '-')}": metadata[name] for name in ("bundle", "spec", "tokens_in", "tokens_out")}
    headers["content-disposition"] = f'attachment; filename="visual_tokens.{request.format}"'
    return _file(array, clip, metadata, request.format), headers


async def inspect(state: State, request: Job, deadline: float, held: Held) -> dict[str, Any]:
    """Frames as small pictures, heat per patch in 0 … 255, and the frames that PTG replaces by summaries."""
    model, clip = await _clip(state, request, deadline, held)
    manifest = model.bundle.manifest
    summaries = written_levels(model.bundle)
    heat = _heat(clip.norms)
    return {
        "model": model.name,
        "tokens_in": manifest.patch_tokens,
        "tokens_out": len(clip.tokens),
        "spec": manifest.compression.spec,
        "grid": manifest.grid,
        "repeated_frames": clip.repeated,
        "seconds": clip.seconds,
        "frames": [
            {
                "index": index,
                "time": round(clip.timestamps[number], 3),
                "image": clip.pictures[number],
                "summary_levels": summaries.get(number, []),
                "heat": heat[number] if heat is not None else None,
            }
            for number, index in enumerate(clip.frames)
        ],
    }


def written_levels(bundle: Bundle) -> dict[int, list[int]]:
    """{sampled frame: levels of Pyramid Temporal Gridding, from 1, that write a summary into it}."""
    first = parse(bundle.manifest.compression.spec, OPTIONS, others=True)[0]
    if first.name != "ptg":
        return {}  # behind another stage the frames may be others
    return summary_levels(bundle.manifest.frames, first.options.sizes, first.options.strides)


async def _clip(state: State, request: Job, deadline: float, held: Held) -> tuple[ServedModel, EncodedClip]:
    model = state.models[request.model]
    check_frames(model, request.asked[0].asked_frames, "num_frames")
    media = await stored(state, request.asked)
    held.shrink(media.size)
    clip, _ = await encode(state, model, media, deadline)
    held.shrink(0)
    return model, clip


def _heat(norms: np.ndarray | None) -> list[list[int]] | None:
    """Norms [T, H, W] as T rows of H*W numbers 0 … 255, one scale for the clip."""
    if norms is None:
        return None
    wide = norms.astype(np.float32)
    low, high = float(wide.min()), float(np.quantile(wide, 0.995))
    scaled = np.clip((wide - low) / max(high - low, 1e-9), 0, 1) * 255
    return scaled.round().astype(int).reshape(len(norms), -1).tolist()


def _file(array: np.ndarray, clip: EncodedClip, metadata: dict[str, str], form: str) -> bytes:
    if form == "npz":
        file = io.BytesIO()
        np.savez(file, visual_tokens=array, frames=clip.frames, timestamps=clip.timestamps)
        return file.getvalue()
    try:
        from safetensors.numpy import save
    except ImportError:
        error: UserError = missing_package("safetensors", "format safetensors", "serve")
        raise ApiError(400, f"{error}; or ask for format npz", "unsupported_value", "format") from None
    return save({"visual_tokens": np.ascontiguousarray(array)}, metadata=metadata)
