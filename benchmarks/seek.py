"""When does seeking beat decoding on? The choice that `runtime.media.clip` makes, against always and never seeking.

python benchmarks/seek.py [--height 720] [--rounds 5]

A synthetic H.264 clip with a keyframe every G frames is sampled at every gap-th frame. `runtime.media.clip` seeks where that saves more than
`_SEEK_GAIN` decoded frames; 0 there is always, a large number never. Milliseconds a sampled frame, decoding to RGB included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median

import numpy as np
from harness import log, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.media import clip as video

FRAMES = 500
POLICIES = {"never": FRAMES, "ours": video._SEEK_GAIN, "always": 0}


def write_clip(path: Path, height: int, keyframes: int) -> None:
    """H.264 of drifting noise, a keyframe exactly every `keyframes` frames, two B-frames between others."""
    import av

    width = height * 16 // 9 // 2 * 2
    canvas = np.random.default_rng(0).integers(0, 256, (height // 8 + 90, width // 8 + 90, 3), np.uint8)
    canvas = canvas.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as output:
        options = {"g": str(keyframes), "keyint_min": str(keyframes), "sc_threshold": "0", "preset": "veryfast", "bf": "2"}
        stream = output.add_stream("libx264", rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FRAMES):
            row, column = number % 700, 2 * number % 700
            image = np.ascontiguousarray(canvas[row : row + height, column : column + width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def measure(path: Path, gap: int, rounds: int) -> Iterator[tuple[str, float]]:
    """(policy, median milliseconds a sampled frame), the policies in turn within a round."""
    count = FRAMES // gap
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in range(rounds):
        for name, gain in POLICIES.items():
            video._SEEK_GAIN = gain
            start = time.perf_counter()
            video.sample_frames(path, count, lambda frame: frame[:1, :1])
            seconds[name].append((time.perf_counter() - start) / count)
    return ((name, 1e3 * median(values)) for name, values in seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for keyframes in (12, 50, 250):
            path = Path(folder) / f"{keyframes}.mp4"
            log(f"writing a clip with a keyframe every {keyframes} frames")
            write_clip(path, args.height, keyframes)
            for gap in (5, 10, 20, 50, 100):
                log(f"every {gap}th frame")
                times = dict(measure(path, gap, args.rounds))
                best = min(times["never"], times["always"])
                rows.append([f"{keyframes}", gap, times["never"], times["always"], times["ours"], times["ours"] / best])
    header = ["keyframe every", "sampled every", "never seek, ms", "always, ms", "ours, ms", "ours / better of both"]
    write_section("seek", f"{args.height} rows, medians of {args.rounds} rounds.\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
