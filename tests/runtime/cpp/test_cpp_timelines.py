"""C++ chooses the stream, the frames and the times that Python chooses."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cpp_clips import assert_same, numbers, read
from video_files import pattern, write_two_streams, write_video


def test_the_stream_that_is_shown_is_pythons(cpp: Path, tmp_path: Path):
    kinds = av.stream.Disposition
    preview = write_two_streams(tmp_path / "preview.mp4", ("mjpeg", 0), ("libx264", kinds.default))
    cover = write_two_streams(tmp_path / "cover.mp4", ("mjpeg", kinds.attached_pic), ("libx264", 0))
    paths = [preview, cover]
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert answer["size"] == [96, 128] and answer["total"] == 12
        assert_same(answer, path)


def test_files_without_a_video_to_decode_are_called_what_they_are(cpp: Path, tmp_path: Path):
    with av.open(str(tmp_path / "music.m4a"), "w", format="mp4") as output:
        sound, picture = output.add_stream("aac", rate=16000, layout="mono"), output.add_stream("mjpeg", rate=1)
        picture.height, picture.width, picture.pix_fmt, picture.disposition = 24, 32, "yuvj420p", av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        samples.sample_rate = 16000
        output.mux(picture.encode(av.VideoFrame.from_ndarray(pattern(1, 24, 32)[0], format="rgb24")))
        for packets in (picture.encode(), sound.encode(samples), sound.encode()):
            output.mux(packets)
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    write_video(tmp_path / "secret.mp4", pattern(8), container_options=keys)
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    paths = [tmp_path / "music.m4a", tmp_path / "secret.mp4", tmp_path / "drawing.svg"]
    refusals = ("cover picture", "encrypted", "not a video")
    for answer, path, words in zip(read(cpp, paths), paths, refusals, strict=True):
        assert words in answer["error"]
        assert_same(answer, path)


def test_recordings_that_begin_or_end_anywhere_are_read(cpp: Path, tmp_path: Path):
    open_groups = {"g": "12", "bf": "2", "x264-params": "open-gop=1"}
    whole = write_video(tmp_path / "whole.ts", pattern(60), rate=25, options=open_groups)
    begun, ended = tmp_path / "begun.ts", tmp_path / "ended.mp4"
    packets = whole.stat().st_size // 188
    begun.write_bytes(whole.read_bytes()[packets // 3 * 188 :])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(whole.read_bytes() * 2)
    slower = write_video(tmp_path / "slower.ts", pattern(20), rate=10)
    slower.write_bytes(whole.read_bytes() + slower.read_bytes())
    pieces = write_video(ended, pattern(40), options={"g": "10"}, container_options={"movflags": "frag_keyframe+empty_moov"})
    pieces.write_bytes(pieces.read_bytes()[: -pieces.stat().st_size // 6])
    listed = write_video(tmp_path / "listed.mp4", pattern(40), options={"g": "10"}, container_options={"movflags": "frag_keyframe"})
    listed.write_bytes(listed.read_bytes()[: -listed.stat().st_size // 6])  # the first ten of its frames stand in an index up front
    paths = [begun, joined, ended, slower, listed]
    answers = read(cpp, paths, 8)
    for answer, path in zip(answers, paths, strict=True):
        assert_same(answer, path, 8)
    assert 24 <= answers[0]["total"] < 60
    assert answers[1]["total"] == 120 and answers[1]["duration"] == pytest.approx(120 / 25)
    assert answers[1]["indices"] == [0, 15, 30, 45, 60, 75, 90, 105]
    assert "the file ends inside a frame" in answers[2]["notes"][0]
    assert answers[4]["total"] == answers[2]["total"] > 20 and answers[4]["notes"][0] == answers[2]["notes"][0]
    assert answers[3]["duration"] == pytest.approx(60 / 25 + 20 / 10)


def test_open_groups_are_entered_by_seeking(cpp: Path, tmp_path: Path):
    """Frames after the seek are those of a decoding from the start."""
    path = write_video(tmp_path / "open.mp4", pattern(120), options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})
    (answer,) = read(cpp, [path], 4)
    assert_same(answer, path)
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (answer["frames"] == [every[index] for index in (0, 30, 60, 90)]).all()


def test_times_decide_as_in_python(cpp: Path, tmp_path: Path):
    gap = write_video(tmp_path / "gap.mp4", pattern(20), times=[0, *range(1_000_100, 1_002_000, 100)])
    uneven = write_video(tmp_path / "uneven.mkv", pattern(12), times=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 150, 200])
    slides = write_slides(tmp_path / "slides.mp4")
    short = write_video(tmp_path / "short.mp4", pattern(3))
    raw = write_video(tmp_path / "raw.h264", pattern(20), rate=10)  # its headers alone tell how fast it is
    paths = [gap, uneven, slides, short, raw]
    answers = read(cpp, paths, 8)
    for answer, path in zip(answers, paths, strict=True):
        assert_same(answer, path, 8)
    assert answers[0]["indices"] == [0, 2, 5, 7, 10, 12, 15, 17] and "sampled by number" in answers[0]["notes"][0]
    assert "not shown equally long" in answers[1]["notes"][0]
    assert answers[2]["indices"] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert numbers(answers[3]["notes"]) == [["8", "5"]]
    assert answers[4]["duration"] == 2


def write_slides(path: Path) -> Path:
    """Two frames: one for a second, one for a minute."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        packets = [packet for image in pattern(2) for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))]
        packets += stream.encode()
        for packet, seconds in zip(packets, (1, 60), strict=True):
            packet.duration = int(seconds / Fraction(packet.time_base))
            output.mux(packet)
    return path
