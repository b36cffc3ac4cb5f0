"""The valid files that a campaign mutates, made once into `DIR/corpus`: clips, stills, a checkpoint, and bundles of both sizes.

Clips and stills have a few kB and come from every encoder and container that is here, so that mutations reach every demuxer and
decoder of them. `small` is a random checkpoint whose export takes a second or two: what is killed again and again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import in_child

SIDE, COUNT = 64, 12  # pixels a side (SVT-AV1 takes no fewer), frames
_VIDEOS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "yuv420p", {"g": "5"}),
    "h264.mkv": ("libx264", "yuv420p", {"g": "5"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "5"}),
    "h264.flv": ("libx264", "yuv420p", {"g": "5"}),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none"}),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "5"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "5"}),
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "10"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "5"}),
    "mpeg4.mov": ("mpeg4", "yuv420p", {"g": "5"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "5"}),
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"g": "5"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "wmv2.wmv": ("wmv2", "yuv420p", {}),
    "ffv1.mkv": ("ffv1", "yuv420p", {}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "raw.nut": ("rawvideo", "rgb24", {}),
}
_STILLS: dict[str, dict[str, Any]] = {
    "still.png": {},
    "still.jpg": {"quality": 80},
    "progressive.jpg": {"progressive": True},
    "still.gif": {},
    "moving.gif": {"save_all": True},
    "still.webp": {},
    "moving.webp": {"save_all": True},
    "still.bmp": {},
    "still.tiff": {"compression": "tiff_lzw"},
    "moving.png": {"save_all": True},
    "still.avif": {},
}


class Corpus:
    """Paths of what was made; what this machine can't encode is left out and named in `lacking`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.media, self.checkpoint = folder / "media", folder / "checkpoint"
        self.demo, self.small = folder / "demo", folder / "small"
        self.lacking: list[str] = []

    def make_media(self) -> None:
        """Each file in a child process: encoders start threads, and some crash."""
        made = self.media / "made.json"
        if not made.exists():
            self.media.mkdir(parents=True, exist_ok=True)
            lacking = []
            for name, write in [*((name, _write_video) for name in _VIDEOS), *((name, _write_still) for name in _STILLS)]:
                try:
                    in_child(write, self.media / name, folder=self.folder)
                except RuntimeError as error:  # an encoder that is not there, or that crashed
                    (self.media / name).unlink(missing_ok=True)
                    lacking.append(f"{name}: {str(error).strip().splitlines()[-1]}")
            made.write_text(json.dumps(lacking))
        self.lacking = json.loads(made.read_text())

    def media_files(self) -> list[Path]:
        return sorted(path for path in self.media.iterdir() if path.name != "made.json")

    def make_small(self) -> None:
        """The small checkpoint and its bundle."""
        from export.options import ExportOptions
        from export.pipeline import export_bundle

        if not self.checkpoint.exists():
            _once(self.checkpoint, _write_checkpoint)
        if not self.small.exists():
            _once(self.small, lambda path: export_bundle(ExportOptions(checkpoint=str(self.checkpoint), frames=4, out=str(path))))

    def make_demo(self) -> None:
        """The bundle of the checkpoint that ships: its answers mean something."""
        from export.options import ExportOptions
        from export.pipeline import export_bundle

        if not self.demo.exists():
            _once(self.demo, lambda path: export_bundle(ExportOptions(out=str(path))))


def _once(target: Path, make: Callable[[Path], Any]) -> None:
    """Make a directory under another name, so that a campaign that was killed here begins it anew."""
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(target)


def _images(count: int = COUNT) -> list[Any]:
    """RGB uint8 [SIDE, SIDE, 3], waves that travel."""
    import numpy as np

    y, x = np.mgrid[:SIDE, :SIDE]
    waves = [
        [128 + 100 * np.sin((x + 3 * i) / 9), 128 + 100 * np.cos((y - 2 * i) / 7), np.full(x.shape, 20 * i)] for i in range(count)
    ]
    return [np.stack(wave, -1).astype(np.uint8) for wave in waves]


def _write_video(path: Path) -> None:
    import av

    codec, pixel_format, options = _VIDEOS[path.name]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=16, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, pixel_format
        stream.thread_count = 1
        for image in _images():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def _write_still(path: Path) -> None:
    from PIL import Image

    settings = dict(_STILLS[path.name])
    first, *rest = [Image.fromarray(image) for image in _images(4)]
    first.save(path, **settings, **({"append_images": rest, "duration": 60} if settings.get("save_all") else {}))


def _write_checkpoint(path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "random_checkpoint.py"
    command = [sys.executable, str(script), "--size", "tiny", "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
