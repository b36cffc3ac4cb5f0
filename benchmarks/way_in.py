"""Contestant: from a video file to `pixel_values`, decoding and preprocessing apart.

python benchmarks/way_in.py '{"video": FILE, "frames": [T, ...], "size": h}'

A file that does not exist is written first, by seek.py: 20 seconds of 720p H.264, a keyframe every two seconds. Prints
{"clips": [{"frames", "decode", "preprocess"}]}, in seconds. Decoding is seeking, decoding and conversion to RGB; preprocessing
resizes each frame as it is decoded and normalises the clip. Medians of ROUNDS in turns.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import median

from harness import ROOT
from seek import write_clip
from workload import timed

sys.path.insert(0, str(ROOT))
from runtime.bundle.manifest import Preprocessing
from runtime.media.clip import sample_frames
from runtime.media.preprocess import Preprocessor, load_clip

HEIGHT = 720  # rows of the clip
KEYFRAMES = 50  # frames from one keyframe to the next
ROUNDS = 5


def main() -> None:
    job = json.loads(sys.argv[1])
    preprocessor = Preprocessor(Preprocessing((job["size"], job["size"]), "bicubic", 1 / 255, 0.5, 0.5))
    video = Path(job["video"])
    if not video.exists():
        write_clip(video.with_suffix(".writing.mp4"), HEIGHT, KEYFRAMES)
        os.replace(video.with_suffix(".writing.mp4"), video)
    load_clip(video, 1, preprocessor)
    clips = []
    for frames in job["frames"]:
        decode, both = [], []
        for _ in range(ROUNDS):
            decode.append(timed(lambda frames=frames: sample_frames(video, frames, lambda frame: frame[:1, :1]))[0])
            both.append(timed(lambda frames=frames: load_clip(video, frames, preprocessor))[0])
        clips.append({"frames": frames, "decode": median(decode), "preprocess": median(both) - median(decode)})
    print(json.dumps({"clips": clips}))


if __name__ == "__main__":
    main()
