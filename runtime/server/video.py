"""POST /v1/video/tokens: a clip's compressed tokens, for clients with an LLM of their own; /v1/video/inspect: what the page shows.

N visual tokens, D hidden.
"""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse

from plugins.op import OPTIONS
from plugins.schedule import summary_levels
from plugins.spec import parse
from runtime.bundle import Bundle
from runtime.server.clip_encoder import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.media import load
from runtime.server.memory import Held
from runtime.server.models import ServedModel
from runtime.server.schema import VideoRequest
from runtime.server.state import State


class Job:
    """A request until its clip is encoded. The request, and with it the clip's text, is dropped once the clip is a file."""

    def __init__(self, request: VideoRequest):
        self.name, self.format, self.dtype = request.model, request.format, request.dtype
        self._asked = [request.clip]

    async def encode(self, state: State, deadline: float, held: Held) -> tuple[ServedModel, EncodedClip]:
        model = state.models[self.name]
        model.check_frames(self._asked[0].num_frames, "num_frames")
        media = await asyncio.to_thread(load, self._asked.pop(), state.options)
        held.shrink(media.size)
        clip, _ = await state.encode(model, media, deadline)
        held.shrink(0)
        return model, clip


async def tokens(state: State, job: Job, deadline: float, held: Held) -> Response:
    """The tokens as a file, with headers that describe it."""
    model, clip = await job.encode(state, deadline, held)
    array = clip.tokens.astype(job.dtype)
    if not np.isfinite(array).all():
        raise ApiError(422, "the tokens are outside float16's range; ask for dtype float32", "not_finite", "dtype")
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
    headers["content-disposition"] = f'attachment; filename="visual_tokens.{job.format}"'
    return Response(_file(array, clip, metadata, job.format), 200, headers, "application/octet-stream")


async def inspect(state: State, job: Job, deadline: float, held: Held) -> Response:
    """Frames as small pictures, heat per patch in 0 … 255, and the frames that PTG replaces with summaries."""
    model, clip = await job.encode(state, deadline, held)
    manifest = model.bundle.manifest
    summaries = written_levels(model.bundle)
    heat = _heat(clip.norms)
    frames = [
        {
            "index": index,
            "time": round(clip.timestamps[number], 3),
            "image": clip.pictures[number],
            "summary_levels": summaries.get(number, []),
            "heat": heat[number] if heat is not None else None,
        }
        for number, index in enumerate(clip.frames)
    ]
    found = {
        "model": model.name,
        "tokens_in": manifest.patch_tokens,
        "tokens_out": len(clip.tokens),
        "spec": manifest.compression.spec,
        "grid": manifest.grid,
        "repeated_frames": clip.repeated,
        "seconds": clip.seconds,
        "frames": frames,
    }
    return JSONResponse(found)


def written_levels(bundle: Bundle) -> dict[int, list[int]]:
    """{sampled frame: levels of Pyramid Temporal Gridding, from 1, that write a summary into it}."""
    first = parse(bundle.manifest.compression.spec, OPTIONS, others=True)[0]
    if first.name != "ptg":
        return {}  # after another stage, PTG's frames need not be the sampled ones
    return summary_levels(bundle.manifest.frames, first.options.sizes, first.options.strides)


def _heat(norms: np.ndarray | None) -> list[list[int]] | None:
    """Norms [T, H, W] as T rows of H*W numbers 0 … 255, on one scale for the whole clip."""
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
    from safetensors.numpy import save

    return save({"visual_tokens": np.ascontiguousarray(array)}, metadata=metadata)
