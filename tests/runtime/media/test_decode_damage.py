"""What is damage and what is not: lost packets, joints, files that give other frames when they are read again, threads."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, islice, repeat

import numpy as np
import pytest
from refusal import naming
from video_files import frames_of, pattern, seen, write_video

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames
from runtime.media.decode import DamageError, Reader, reading
from runtime.media.stream import Stream


def test_a_transport_stream_that_lost_packets_is_damaged_or_whole(open_group, tmp_path):
    """Wherever two packets are lost; around keyframes, where a mark may be that of a joint, too."""
    content, whole = open_group.read_bytes(), {frame.tobytes() for frame in frames_of(open_group)}
    packets = len(content) // 188
    refused, lossy = 0, tmp_path / "lossy.ts"
    for part in range(10, 90, 4):
        at = packets * part // 100 * 188
        lossy.write_bytes(content[:at] + content[at + 2 * 188 :])
        try:
            clip, frames = seen(lossy)
        except VideoError as error:
            assert "is damaged after" in str(error)
            refused += 1
        else:
            assert clip.total == 96 and all(frame.tobytes() in whole for frame in frames)
    assert refused >= 15


def test_what_a_demuxer_cant_read_is_damage_wherever_the_file_is_read(tmp_path):
    """An H.264 tag too short for its own header, and a transport stream with zeros where its next packet should begin."""
    flash = write_video(tmp_path / "clip.flv", pattern(6, 64, 64))
    transport = write_video(tmp_path / "clip.ts", pattern(6, 64, 64), "mpeg2video")
    tags, short = flash.read_bytes(), b"\t\0\0\2" + bytes(7) + b"\x27\1" + b"\0\0\0\r"
    flash.write_bytes(tags[:13] + short + tags[13:])
    transport.write_bytes(transport.read_bytes()[: 3 * 188] + bytes(188))
    for path in (flash, transport):
        for read in (lambda path: sample_frames(path, 4, lambda image: image), lambda path: list(Stream(str(path)))):
            with pytest.raises(DamageError, match=naming(path, "first frame")):
                read(path)


def test_a_seek_that_fails_is_damage(tmp_path):
    path = write_video(tmp_path / "clip.flv", pattern(4))
    with reading(path) as reader, pytest.raises(DamageError, match=naming(path, "first frame")):
        next(reader.checked(reader.frames_from(-1000, [])))


def test_what_is_damage_does_not_depend_on_how_threads_run(tmp_path):
    """MPEG-4, whose decoder flags a frame while another thread decodes the next."""
    path = write_video(tmp_path / "clip.nut", pattern(40, 64, 64), "mpeg4", options={"g": "10", "bf": "2"})
    content = path.read_bytes()
    at = len(content) // 4
    path.write_bytes(content[:at] + bytes(byte ^ 0x55 for byte in content[at : at + 8]) + content[at + 8 :])
    said = set()
    for _ in range(20):
        try:
            said.add(sample_frames(path, 8, lambda image: image).frames.tobytes())
        except VideoError as error:
            said.add(str(error))
    assert len(said) == 1


def test_a_file_that_gives_fewer_frames_when_it_is_read_again_is_refused_in_one_line(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.h264", pattern(6))
    decoded = Reader.frames
    monkeypatch.setattr(Reader, "frames", lambda self: islice(decoded(self), next(counts)))
    counts = chain([6], repeat(3))
    with pytest.raises(DamageError, match=naming(path, "first frame", "read again")):
        sample_frames(path, 6, lambda image: image)


_ONE_CPU = """
import os, sys
os.sched_setaffinity(0, {0})
sys.path[:0] = ["tests"]
from pathlib import Path
from video_files import pattern, write_video
from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames
path = write_video(Path(sys.argv[1]), pattern(90), "mpeg4", options={"bf": "2", "g": "10"})
content = bytearray(path.read_bytes())
content[len(content) // 2 : len(content) // 2 + len(content) // 20] = bytes(len(content) // 20)
path.write_bytes(content)
try:
    print(sample_frames(path, 16, lambda image: image).total)
except VideoError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_setaffinity"), reason="the system sets no affinity")
def test_damage_is_told_on_one_cpu_too(tmp_path):
    """One thread writes an MPEG-4 frame as one slice, so that the damage takes frames away and the rest decodes well."""
    done = subprocess.run([sys.executable, "-c", _ONE_CPU, str(tmp_path / "clip.avi")], capture_output=True, text=True, check=True)
    assert "is damaged after" in done.stdout and "packets are missing" in done.stdout


def test_a_stream_that_begins_in_the_middle_ends_with_the_last_packet(tmp_path, monkeypatch):
    """PyAV flushes it behind the last packet and raises IndexError, now and then: its list of wanted streams ends before."""
    path = write_video(tmp_path / "v.mkv", [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(5)], "libx264", format="matroska")
    with reading(path) as reader:

        class Demuxer:
            def __getattr__(self, name):
                return getattr(container, name)

            def demux(self, stream):
                yield from container.demux(stream)
                raise IndexError("list index out of range")

        container, reader.container = reader.container, Demuxer()
        assert len(list(reader.packets())) == 5 and not reader.cut
