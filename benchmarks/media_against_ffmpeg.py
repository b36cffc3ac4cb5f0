"""Our frames against those of the ffmpeg command line, for every file of a directory: number, time, orientation and colour.

python benchmarks/media_against_ffmpeg.py DIR [--make] [--all] [--record]

--make writes media of every encoder that PyAV brings into DIR first (media_files.py). ffmpeg shows its own choice of stream with
`-autorotate`, as RGB. A row is "ok" where as many frames come out, each at its time and number, the right way round, and pixels
differ by at most a mean of `MEAN` grey levels: releases of FFmpeg, and Pillow for stills, convert YUV differently.
Rows that are not ok are printed, and all with --all; --record writes the summary to results/media.md. Exit code 1 if any row differs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import log, table, write_section
from media_files import make

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.core.errors import VideoError
from runtime.media.clip import Clip, sample_frames

SAMPLED = 32
MEAN = 4.0  # grey levels
TIME = 0.002  # seconds; Matroska rounds to a millisecond
_GOOD = ("ok", "refused by both", "ffmpeg can't read it", "EXIF, which this ffmpeg ignores")
_LARGEST = 1 << 30  # bytes of RGB that are compared


@dataclass(frozen=True)
class Row:
    """verdict: "ok", or what differs."""

    name: str
    frames: str
    time: str
    orientation: str
    colour: str
    verdict: str

    def cells(self) -> list[str]:
        return [self.name, self.frames, self.time, self.orientation, self.colour, self.verdict]


@dataclass(frozen=True)
class Shown:
    """What ffmpeg shows: times in seconds after the first frame, frames RGB uint8 [total, h, w, 3]."""

    times: list[float]
    frames: np.ndarray


def compare(path: Path) -> Row:
    shown = _by_ffmpeg(path)
    try:
        clip = sample_frames(path, 1, lambda image: image)
        clip = sample_frames(path, min(SAMPLED, clip.total), lambda image: image)
    except VideoError as error:
        reason = str(error).replace(str(path), "").strip()
        return Row(path.name, "-", "-", "-", "-", "refused by both" if shown is None else f"refused: {reason[:90]}")
    if shown is None:
        return Row(path.name, f"{clip.total}", "-", "-", "-", "ffmpeg can't read it")
    return _row(path, clip, shown)


def _row(path: Path, clip: Clip, shown: Shown) -> Row:
    frames = f"{clip.total}" if clip.total == len(shown.times) else f"{clip.total} for {len(shown.times)}"
    pairs = [(number, index) for number, index in enumerate(clip.indices) if index < len(shown.times)]
    late = max(abs(clip.timestamps[number] - shown.times[index]) for number, index in pairs)
    ways = {name: way(clip.frames[0]) for name, way in _ORIENTATIONS.items()}
    fits = {name: _differ(image, shown.frames[clip.indices[0]]) for name, image in ways.items()}
    orientation = min(fits, key=lambda name: fits[name] + (name != "as shown") * 0.5)
    mean = max(_differ(clip.frames[number], shown.frames[index]) for number, index in pairs)
    faults = [
        (clip.total != len(shown.times), "count"),
        (late > TIME, "time"),
        (orientation != "as shown", "orientation"),
        (mean > MEAN, "colour"),
    ]
    verdict = ", ".join(name for is_wrong, name in faults if is_wrong) or "ok"
    if orientation != "as shown" and orientation == _by_exif(path):
        verdict = "EXIF, which this ffmpeg ignores"
    return Row(path.name, frames, f"{1e3 * late:.1f} ms", orientation, f"{mean:.2f}", verdict)


_EXIF = {2: "hflip", 3: "rotate 180", 4: "vflip", 5: "transpose", 6: "rotate 90", 7: "transverse", 8: "rotate 270"}
_ORIENTATIONS = {
    "as shown": lambda image: image,
    "hflip": lambda image: image[:, ::-1],
    "vflip": lambda image: image[::-1],
    "rotate 180": lambda image: image[::-1, ::-1],
    "transpose": lambda image: image.swapaxes(0, 1),
    "rotate 90": lambda image: np.rot90(image),
    "rotate 270": lambda image: np.rot90(image, 3),
    "transverse": lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


def _by_exif(path: Path) -> str | None:
    """How to get what is stored from what a picture's EXIF says; None for what is not a picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _EXIF.get(image.getexif().get(0x112, 1))
    except Image.UnidentifiedImageError:
        return None


def _differ(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(ours.astype(int) - theirs).mean()) if ours.shape == theirs.shape else 255.0


def _by_ffmpeg(path: Path) -> Shown | None:
    """None for a file that the command line can't read."""
    command = ["ffmpeg", "-nostdin", "-v", "info", "-i", f"file:{path}", "-vsync", "passthrough"]
    done = subprocess.run(
        [*command, "-an", "-vf", "showinfo", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"],
        capture_output=True,
        check=False,
        timeout=300,
    )
    text = done.stderr.decode(errors="replace")
    times = [float(time) for time in re.findall(r"Parsed_showinfo.*? pts_time:(\S+)", text) if time != "NOPTS"]
    sizes = re.findall(r"Stream #0:0.*?: Video: rawvideo .*?, (\d+)x(\d+)", text)
    if not times or not sizes or len(done.stdout) > _LARGEST:
        return None
    width, height = map(int, sizes[-1])
    frames = np.frombuffer(done.stdout, np.uint8)
    count = len(frames) // (height * width * 3)
    times = times[:count]
    return Shown([time - times[0] for time in times], frames[: count * height * width * 3].reshape(count, height, width, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--make", action="store_true", help="write media of every encoder into DIR first")
    parser.add_argument("--all", action="store_true", help="print the rows that are ok too")
    parser.add_argument("--record", action="store_true", help="write the summary to benchmarks/results/media.md")
    args = parser.parse_args()
    if args.make:
        log(f"{len(make(args.folder))} files written")
    if shutil.which("ffmpeg") is None:
        log("skipped: ffmpeg is not installed")
        return 0
    rows = []
    for path in sorted(path for path in args.folder.iterdir() if path.is_file()):
        rows.append(compare(path))
        if args.all or rows[-1].verdict != "ok":
            log("  ".join(rows[-1].cells()))
    header = ["file", "frames", "time", "orientation", "colour", "verdict"]
    verdicts = Counter(row.verdict.partition(":")[0] for row in rows)
    summary = table(["verdict", "files"], [[name, count] for name, count in verdicts.most_common()])
    notable = [row.cells() for row in rows if row.verdict not in _GOOD]
    text = f"{len(rows)} files.\n\n{summary}" + (f"\n\n{table(header, notable)}" if notable else "")
    if args.record:
        write_section("media", text)
    else:
        print(text)
    return 0 if all(row.verdict in _GOOD for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
