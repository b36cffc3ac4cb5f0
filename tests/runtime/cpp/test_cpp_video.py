"""C++ decodes, samples and resizes as Python does, and meets damaged files with one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import pytest
from cpp_build import probe
from cpp_videos import check_mutated, write_files
from PIL import Image
from video_files import write_audio

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize("frames", [4, 16])
def test_frames_and_times_are_those_of_python(cpp: Path, videos: dict[str, Path], frames: int):
    answers = probe(cpp, "frames", [[str(path), frames, True] for path in videos.values()])
    for (name, path), answer in zip(videos.items(), answers, strict=True):
        clip = sample_frames(path, frames, lambda image: image)
        assert "error" not in answer, (name, answer)
        assert answer["indices"] == list(clip.indices), name
        assert answer["timestamps"] == list(clip.timestamps), name
        assert (answer["duration"], answer["total"], tuple(answer["size"])) == (clip.duration, clip.total, clip.size), name
        pixels = np.frombuffer(bytes.fromhex("".join(answer["frames"])), np.uint8).reshape(clip.frames.shape)
        assert (pixels == clip.frames).all(), (name, np.abs(pixels.astype(int) - clip.frames).max())


def test_faults_read_like_those_of_python(cpp: Path, videos: dict[str, Path], tmp_path: Path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["keyframes.mp4"].read_bytes()[:-2000])
    audio = write_audio(tmp_path / "audio.mp4")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{videos['constant.mp4']}\n")
    asked = [(cut, 4), (audio, 4), (playlist, 4), (videos["constant.mp4"], 0), (videos["constant.mp4"], 4097), (tmp_path, 1)]
    answers = probe(cpp, "frames", [[str(path), frames, False] for path, frames in asked])
    for (path, frames), answer in zip(asked, answers, strict=True):
        with pytest.raises(VideoError) as expected:
            sample_frames(path, frames, lambda image: image)
        assert answer == {"error": str(expected.value)}


def test_mutated_files_give_frames_or_one_clear_line(cpp: Path, videos: dict[str, Path], tmp_path: Path):
    check_mutated(cpp, tmp_path, videos, 600)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    levels = rng.integers(0, 256, (height, width, 3), np.uint8)
    return levels if rng.random() < 0.5 else (levels // 128 * 255).astype(np.uint8)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 resizes some shapes in another order than Pillow 13")
@pytest.mark.parametrize("how", range(6))
def test_resizing_has_the_bits_of_pillow(cpp: Path, how: int):
    rng = np.random.default_rng(how)
    sizes = [(1, 1, 9, 9), (5, 7, 5, 7), (5, 7, 5, 9), (5, 7, 11, 7), (97, 131, 27, 31), *rng.integers(1, 90, (200, 4)).tolist()]
    if how == 3:  # frames of cameras, lying and standing
        cameras = [(378, 378), (480, 640), (720, 1280), (1280, 720), (640, 480), (1056, 720), (1057, 720)]
        sizes += [(*camera, side, side) for camera in cameras for side in (126, 384)]
    images = [_noise(rng, height, width) for height, width, _, _ in sizes]
    lines = [[*size, how, image.tobytes().hex()] for size, image in zip(sizes, images, strict=True)]
    for (*_, rows, columns), image, answer in zip(sizes, images, probe(cpp, "resize", lines), strict=True):
        expected = np.asarray(Image.fromarray(image).resize((columns, rows), resample=how))
        got = np.frombuffer(bytes.fromhex(answer), np.uint8).reshape(rows, columns, 3)
        assert (got == expected).all(), (image.shape, rows, columns)
