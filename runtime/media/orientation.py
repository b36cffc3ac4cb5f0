"""A display matrix applied to a frame: quarter turns and mirroring, as ffmpeg's `-autorotate` applies them.

The matrix (ISO/IEC 14496-12, 6.2.2) maps a decoded pixel (x, y) to (a*x + c*y, b*x + d*y) on the screen, up to a shift; it is
stored as nine 32-bit integers a b u c d v tx ty w. Of a, b, c and d only the larger pair and its signs matter.

h, w rows and columns of a frame.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from runtime.core.errors import VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def upright_rgb(frame: VideoFrame, codec: str) -> np.ndarray:
    """RGB uint8 [h, w, 3], rotated and mirrored for display; codec: the name of the decoder.

    Chroma is interpolated with a bicubic filter, as on the ffmpeg command line. VideoError for a colour space that FFmpeg can't
    convert.
    """
    import av

    try:
        image = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
    except av.FFmpegError as error:
        raise VideoError(
            f"a frame can't be converted to RGB ({error.strerror}); convert the video to another colour space"
        ) from None
    matrix = _matrix(frame, codec)
    return image if matrix is None else oriented(image, matrix)


def _matrix(frame: VideoFrame, codec: str) -> list[int] | None:
    """The display matrix; built from the rotation alone where PyAV can't list a frame's side data."""
    # PyAV 18 frees the name of a PNG's colour profile twice: listing such side data crashes the process.
    if codec not in ("png", "apng"):
        try:
            side = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # side data of a kind that PyAV doesn't know
            pass
        else:
            return None if side is None else np.frombuffer(side, np.int32, 9).tolist()  # type: ignore[call-overload]
    x, y = round(math.cos(math.radians(frame.rotation))), round(math.sin(math.radians(frame.rotation)))
    return [x, -y, 0, y, x]


def oriented(image: np.ndarray, matrix: list[int]) -> np.ndarray:
    """`image` [h, w, ...] transformed by `matrix`, rounded to the nearest multiple of 90 degrees."""
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        x, y = a, d
    else:
        image, x, y = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])
