"""One clip to visual tokens, and to what the page shows: small pictures of the sampled frames, and the norms of their tokens before
compression.

T frames, H, W patch rows and columns, N visual tokens, D hidden.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.core.errors import VideoError
from runtime.engine import EngineOptions
from runtime.media.clip import Clip, DecodeLimits, sample_frames_limited
from runtime.server.media import Media
from runtime.server.norms import TOKEN_NORMS, open_with_norms
from runtime.vision.encoder import VisionEncoder

_PICTURE = 192  # pixels of a small picture's longer side


@dataclass(frozen=True)
class EncodedClip:
    """key identifies the content and the graph; tokens [N, D]; norms [T, H, W] float16 or None; pictures: T JPEG data: URLs."""

    key: str
    tokens: np.ndarray
    frames: tuple[int, ...]
    timestamps: tuple[float, ...]
    repeated: int
    norms: np.ndarray | None
    pictures: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.tokens.nbytes + (self.norms.nbytes if self.norms is not None else 0) + sum(map(len, self.pictures))


class ClipEncoder:
    """The vision encoder of one bundle for untrusted clips."""

    def __init__(self, bundle: Bundle, backend: str, options: EngineOptions, limits: DecodeLimits):
        self.bundle, self.limits = bundle, limits
        self.vision = VisionEncoder(bundle, open_with_norms(bundle, backend, options))
        self.identity = bundle.sha256(VISION)

    def key(self, media: Media) -> str:
        return f"{self.identity}:{media.digest}"

    def decode(self, media: Media, check: Callable[[], None]) -> Clip:
        """Sample the bundle's frames. check() runs for each and raises to stop. VideoError names the clip, not our file."""
        count = self.bundle.manifest.frames

        def each(frame: np.ndarray) -> np.ndarray:
            check()
            return self.vision.preprocessor.resize(frame)

        if media.fps is None:
            return self._sampled(media, 0, count, each)
        total = len(media.paths)
        indices = tuple(number * total // count for number in range(count))
        stills = {index: self._sampled(media, index, 1, each) for index in sorted(set(indices))}
        return Clip(
            path=media.paths[0],
            frames=np.concatenate([stills[index].frames for index in indices]),
            indices=indices,
            timestamps=tuple(index / media.fps for index in indices),
            duration=total / media.fps,
            total=total,
            size=stills[0].size,
        )

    def encode(self, media: Media, clip: Clip, check: Callable[[], None]) -> EncodedClip:
        """Encode sampled frames. check() raises to stop before the encoder runs."""
        start = time.perf_counter()
        pixel_values = self.vision.preprocessor.normalise(clip.frames, self.vision.engine.pixel_values.dtype)
        check()
        ready = time.perf_counter()
        outputs, manifest = self.vision.run(pixel_values), self.bundle.manifest
        norms = outputs.get(TOKEN_NORMS)
        return EncodedClip(
            key=self.key(media),
            tokens=outputs["visual_tokens"],
            frames=clip.indices,
            timestamps=clip.timestamps,
            repeated=clip.repeated,
            norms=None if norms is None else norms.reshape(manifest.frames, *manifest.grid).astype(np.float16),
            pictures=tuple(map(_picture, clip.frames)),
            seconds={"decode+preprocess": ready - start, "encode+compress": time.perf_counter() - ready},
        )

    def _sampled(self, media: Media, file: int, count: int, each: Callable[[np.ndarray], np.ndarray]) -> Clip:
        path, name = media.paths[file], "the clip" if media.fps is None else f"frame {file} of the clip"
        try:
            return sample_frames_limited(path, count, each, self.limits)
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), name)) from None


def _picture(frame: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((_PICTURE, _PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
