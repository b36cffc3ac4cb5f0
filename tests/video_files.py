"""Video files for tests: a moving pattern whose every frame is different, written with PyAV in whatever way a test asks.

`frames_of(path)` is the reference: every frame of a file, decoded from the start without options or seeks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from runtime.media.clip import Clip, sample_frames

# x264's own settings for an open group: its first pictures tell the decoder to drop references that a cut took away.
OPEN = {"g": "24", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}


def pattern(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """RGB uint8 frames with waves that travel, so that inter-frame prediction has work and no two frames are equal."""
    y, x = np.mgrid[:height, :width]
    waves = [
        np.stack([128 + 100 * np.sin((x + 3 * i) / 9), 128 + 100 * np.cos((y - 2 * i) / 7), np.full(x.shape, 5 * i % 256)], -1)
        for i in range(count)
    ]
    return [wave.astype(np.uint8) for wave in waves]


def write_video(
    path: Path,
    images: Sequence[np.ndarray],
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 16,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    cut: int = 0,
    matrix: Sequence[int] | None = None,
    **container: object,
) -> Path:
    """times: presentation times in milliseconds, for a variable rate; rotation: counter-clockwise degrees to show it at;
    cut: first frames that are stored but, by mp4's edit list, not shown; matrix: a, b, c, d of the display matrix."""
    height, width = images[0].shape[:2]
    with av.open(str(path), "w", **container) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            _mux(output, stream.encode(frame), cut, rate)
        _mux(output, stream.encode(), cut, rate)
    return path


def _mux(output, packets, cut: int, rate: int) -> None:
    for packet in packets:
        early = int(cut / rate / packet.time_base) if cut else 0  # what lies before zero is cut
        packet.pts, packet.dts = packet.pts - early, packet.dts - early
        output.mux(packet)


def write_without_its_last_slice(path: Path) -> Path:
    """Six H.264 pictures of noise in two slices each, with B-frames; the last slice of the file is a filler, which no decoder refuses."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 240, 320, 3), np.uint8)
    write_video(path, noise, options={"bf": "1", "refs": "1", "slices": "2", "g": "10"})
    with av.open(str(path)) as container:
        *_, last = (bytes(packet) for packet in container.demux(video=0) if packet.size)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack(">I", last[:4])
    slice_type = content.index(last) + 4 + first + 4
    content[slice_type] = content[slice_type] & 0xE0 | 12
    path.write_bytes(content)
    return path


def write_audio(path: Path) -> Path:
    """One second of silence, AAC in an mp4 container."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def seen(path: Path, count: int | None = None) -> tuple[Clip, list[np.ndarray]]:
    """The clip and its frames: all of them, or `count`."""
    clip = sample_frames(path, count or sample_frames(path, 1, lambda image: image).total, lambda image: image)
    return clip, list(clip.frames)


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def decoded_by(monkeypatch) -> list[int | None]:
    """A list to which the times of all frames are added that are decoded from now on."""
    from runtime.media.decode import Reader

    decoded: list[int | None] = []
    frames_after = Reader.frames_after

    def noted(*arguments):
        for frame in frames_after(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(Reader, "frames_after", noted)
    return decoded


def write_two_streams(path: Path, first: tuple[str, int], second: tuple[str, int]) -> Path:
    """(codec, disposition) of two video streams in one file: a picture of 24 rows, then 12 frames of 96."""
    with av.open(str(path), "w") as output:
        streams = []
        for (codec, disposition), images in ((first, pattern(1, 24, 32)), (second, pattern(12))):
            stream = output.add_stream(codec, rate=12)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = av.stream.Disposition(disposition)
            streams.append((stream, images))
        for stream, images in streams:
            for image in images:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode())
    return path
