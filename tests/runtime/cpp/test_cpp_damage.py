"""Damaged, truncated and hostile clips: the same frames or kind of error as in Python, and never the end of the process."""

from __future__ import annotations

import struct
from pathlib import Path

from cpp_build import probe
from cpp_clips import assert_same, read
from PIL import Image
from video_files import pattern, write_video, write_without_its_last_slice


def test_damage_in_whatever_codec_does_not_end_the_process(cpp: Path, tmp_path: Path):
    """FFmpeg 5.1 aborts where a decoder that works in threads fails after it promised a frame: here, at what follows the picture."""
    Image.fromarray(pattern(1)[0]).save(tmp_path / "0.webp")
    with (tmp_path / "0.webp").open("ab") as file:
        file.write(b"\xff" * 12)
    content = write_video(tmp_path / "clip.avi", pattern(12, 64, 64), "mpeg4").read_bytes()
    start = content.index(b"movi")
    for part in range(1, 8):
        at = start + part * (len(content) - start) // 10
        (tmp_path / f"{part}.avi").write_bytes(
            content[:at] + bytes(byte ^ 0x55 for byte in content[at : at + 8]) + content[at + 8 :]
        )
    webp, *clips = read(cpp, [tmp_path / "0.webp", *(tmp_path / f"{part}.avi" for part in range(1, 8))])
    assert webp["total"] == 1 if "error" not in webp else "damaged" in webp["error"]
    assert all("damaged" in clip["error"] if "error" in clip else clip["total"] for clip in clips)


def test_a_video_with_frames_larger_than_any_is_refused_before_one_is_made(cpp: Path, tmp_path: Path):
    """VP8's keyframes say their size in 14 bits behind a mark, AVI's stream headers in 32."""
    for path, codec, mark, size, named in (
        (tmp_path / "a.mkv", "libvpx", b"\x9d\x01\x2a", "<HH", "damaged"),
        (tmp_path / "a.avi", "rawvideo", b"strf\x28\0\0\0\x28\0\0\0", "<II", "16000x16000"),
    ):
        content = bytearray(write_video(path, pattern(2, 64, 64), codec).read_bytes())
        struct.pack_into(size, content, content.index(mark) + len(mark), 16_000, 16_000)
        path.write_bytes(content)
        (answer,) = probe(cpp, "frames", [[str(path), 1, False]])
        assert all(word in answer["error"] for word in (str(path), named, "67108864 pixels"))


def test_what_a_demuxer_cant_read_is_damage_as_in_python(cpp: Path, tmp_path: Path):
    content = write_video(tmp_path / "clip.ts", pattern(6, 64, 64), "mpeg2video").read_bytes()
    paths = [tmp_path / name for name in ("first.ts", "later.ts")]
    for path, end in zip(paths, (3 * 188, 16 * 188 + 60), strict=True):
        path.write_bytes(content[:end] + bytes(188 if end % 188 == 0 else 500))
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert "is damaged" in answer["error"]
        assert_same(answer, path)


def test_a_last_picture_without_one_of_its_slices_is_left_out_however_threads_run(cpp: Path, tmp_path: Path):
    path = write_without_its_last_slice(tmp_path / "clip.mkv")
    answers = probe(cpp, "frames", [[str(path), 6, False]] * 20)
    assert {(answer["total"], *answer["indices"]) for answer in answers} == {(5, 0, 0, 1, 2, 3, 4)}
