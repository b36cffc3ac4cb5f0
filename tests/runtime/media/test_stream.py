"""Frames of a file or a camera as they come: all of a file's, a camera's without what was lost, on a clock that never goes back."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from refusal import naming
from rtsp_camera import camera
from video_files import frames_of, pattern, write_video

from runtime.core.errors import UserError, VideoError
from runtime.media import stream
from runtime.media.clip import sample_frames
from runtime.media.stream import Clock, Stream


def noisy(image: np.ndarray) -> np.ndarray:
    """With noise, so that a frame takes several packets."""
    return (image // 2 + np.random.default_rng(int(image.sum())).integers(0, 60, image.shape)).astype(np.uint8)


def read(source) -> tuple[list[float], list[np.ndarray]]:
    pairs = [(seconds, rgb()) for seconds, rgb in Stream(str(source))]
    return [seconds for seconds, _ in pairs], [image for _, image in pairs]


def test_a_file_is_seen_as_a_clip_is(tmp_path):
    path = write_video(tmp_path / "clip.mp4", pattern(24), rotation=90, options={"bf": "2"})
    times, frames = read(path)
    clip = sample_frames(path, 24, lambda image: image)
    np.testing.assert_array_equal(frames, clip.frames)
    assert times == pytest.approx(clip.timestamps)


def test_a_picture_is_a_stream_of_one_frame(tmp_path):
    Image.fromarray(pattern(1)[0]).save(tmp_path / "picture.png")
    times, (frame,) = read(tmp_path / "picture.png")
    assert times == [0.0]
    np.testing.assert_array_equal(frame, pattern(1)[0])


def test_the_clock_of_a_joined_file_goes_on(tmp_path):
    path = write_video(tmp_path / "clip.ts", pattern(20), rate=25, options={"g": "10", "bf": "2"})
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() * 2)
    times, frames = read(joined)
    assert times == pytest.approx([i / 25 for i in range(40)])
    np.testing.assert_array_equal(frames, frames_of(path) * 2)


@pytest.mark.parametrize(
    ("times", "keys", "expected"),
    [
        ([1.4, 1.5, 1.6], "100", [0, 0.1, 0.2]),
        ([5.0, 5.1, 0.0, 0.1], "1010", [0, 0.1, 0.2, 0.3]),  # a camera that began anew
        ([5.0, 5.2, 5.1, 5.3], "1000", [0, 0.2, 0.2, 0.3]),  # disorder
        ([None, None, None], "100", [0, 0.1, 0.2]),
        ([None, 3.0, 3.5], "100", [0, 3, 3.5]),
        ([5.0, 5.25, 5.25, 5.5], "1011", [0, 0.25, 0.35, 0.6]),  # a new clock where the old one stood
        ([5.0, 5.25, 5.25, 5.5], "1000", [0, 0.25, 0.25, 0.5]),
        ([-2.0, -1.5, -1.0], "111", [0, 0.5, 1]),
        ([5.0, None, 5.5], "100", [0, 0.1, 0.5]),
    ],
)
def test_seconds_never_go_back(times, keys, expected):
    clock = Clock()
    assert [clock.seconds(time, key == "1", 0.1) for time, key in zip(times, keys, strict=True)] == pytest.approx(expected)


def test_a_damaged_file_is_an_error_and_so_is_one_without_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", pattern(60), options={"g": "10"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="is damaged after"):
        read(path)


class TestCamera:
    """60 frames of 25 a second with a keyframe every 20, through a transport stream that stands in for the network."""

    @pytest.fixture(scope="class")
    def content(self, tmp_path_factory) -> bytes:
        path = tmp_path_factory.mktemp("camera") / "camera.ts"
        options = {"g": "20", "tune": "zerolatency", "sc_threshold": "0"}
        return write_video(path, [noisy(image) for image in pattern(60)], rate=25, options=options).read_bytes()

    @pytest.fixture
    def read(self, tmp_path, monkeypatch):
        """read(bytes): (numbers of the frames after the first one that was shown, how many were lost)."""

        def read(content: bytes) -> tuple[list[int], int]:
            (tmp_path / "camera.ts").write_bytes(content)
            monkeypatch.setattr(stream, "_opened", lambda source: av.open(str(tmp_path / "camera.ts")))
            camera = Stream("rtsp://camera")
            return [round(25 * seconds) for seconds, _ in camera], camera.take_lost()

        return read

    @staticmethod
    def starts(content: bytes, tmp_path) -> list[int]:
        """Where each frame begins."""
        (tmp_path / "whole.ts").write_bytes(content)
        with av.open(str(tmp_path / "whole.ts")) as container:
            return [packet.pos for packet in container.demux(video=0) if packet.size]

    def test_a_good_line_loses_nothing(self, read, content):
        assert read(content) == ([*range(60)], 0)

    @pytest.mark.parametrize(("frame", "shown"), [(30, [*range(29), *range(40, 60)]), (20, [*range(19), *range(40, 60)])])
    def test_a_lost_packet_costs_the_frames_up_to_the_next_keyframe(self, read, content, tmp_path, frame, shown):
        # FFmpeg's demuxer marks the packet before the one that has the loss, so that one goes too.
        at = self.starts(content, tmp_path)[frame] + 3 * 188
        numbers, lost = read(content[:at] + content[at + 188 :])
        assert numbers == shown and lost == 60 - len(shown)

    def test_a_stream_joined_inside_a_group_begins_at_its_next_keyframe(self, read, content, tmp_path):
        numbers, _ = read(content[: 3 * 188] + content[self.starts(content, tmp_path)[25] :])  # tables, then from frame 25
        assert numbers == [*range(20)]

    def test_without_keyframes_frames_are_shown_again_after_a_while(self, read, content, tmp_path, monkeypatch):
        monkeypatch.setattr(stream, "_RECOVERY", 0.2)
        at = self.starts(content, tmp_path)[41] + 3 * 188
        numbers, lost = read(content[:at] + content[at + 188 :])
        assert numbers[:40] == [*range(40)] and lost in (5, 6) and len(numbers) == 60 - lost


class TestLine:
    """A camera of a frame every 3 1/3 seconds whose packets decode to: K keyframe, a frame, ! one that is corrupt, ? one with a part lost,
    _ none, x an error."""

    @pytest.fixture
    def shown(self, monkeypatch):
        """shown(packets): (numbers of the packets whose frames are shown, how many were lost)."""

        class Packet:
            def __init__(self, number: int, kind: str):
                self.number, self.kind, self.is_corrupt, self.opaque = number, kind, kind == "?", None

            def decode(self) -> list[SimpleNamespace]:
                if self.kind == "x":
                    raise av.error.InvalidDataError(1, "Invalid data")
                frame = SimpleNamespace(
                    pts=self.number, key_frame=self.kind == "K", is_corrupt=self.kind == "!", opaque=self.opaque
                )
                return [] if self.kind == "_" else [frame]

        def read(kinds: str) -> tuple[list[int], int]:
            video = SimpleNamespace(
                guessed_rate=Fraction(3, 10), time_base=Fraction(10, 3), codec_context=SimpleNamespace(name="h264")
            )
            demux = lambda asked: (Packet(number, kind) for number, kind in enumerate(kinds))  # noqa: E731
            monkeypatch.setattr(stream, "_opened", lambda source: nullcontext(SimpleNamespace(demux=demux)))
            monkeypatch.setattr(stream, "best_stream", lambda container, source: video)
            camera = Stream("rtsp://camera")
            seen = [frame.pts for frame, _ in camera._of_camera()]
            assert (video.thread_type, video.codec_context.copy_opaque) == ("AUTO", True)
            lost = camera.take_lost()
            assert camera.take_lost() == 0
            return seen, lost

        return read

    @pytest.mark.parametrize(
        ("packets", "shown_", "lost"),
        [
            ("", [], 0),
            ("K..K.", [0, 1, 2, 3, 4], 0),
            ("K_.", [0, 2], 0),
            ("..K.", [2, 3], 2),  # joined inside a group
            ("K.!.K.", [0, 1, 4, 5], 2),
            ("K.?.K.", [0, 1, 4, 5], 2),
            ("K.x.K.", [0, 1, 4, 5], 2),
            ("Kxx.K", [0, 4], 3),
            ("xK.", [1, 2], 1),
            ("K!!K", [0, 3], 2),
            ("K!K!K", [0, 2, 4], 2),
            ("K!.....", [0, 5, 6], 4),  # after 13 1/3 seconds, which are more than 10
            ("Kx.....", [0, 6], 5),  # nothing came of it, so no time either
            ("K!.x...", [0, 6], 5),
            (".....", [4], 4),
            ("K!...!....", [0, 6, 7, 8, 9], 5),  # another loss does not make it longer
        ],
    )
    def test_frames_are_left_out_up_to_a_keyframe_or_for_a_while(self, shown, packets, shown_, lost):
        assert shown(packets) == (shown_, lost)


def _frames(*frames: tuple[int | None, bool]):
    """A stand-in for a source: frames of (time in quarters of a second, whether it is a keyframe), 10 a second as is guessed."""
    video = SimpleNamespace(time_base=Fraction(1, 4), guessed_rate=Fraction(10), codec_context=SimpleNamespace(name="h264"))
    return ((SimpleNamespace(pts=pts, key_frame=key), video) for pts, key in frames)


def test_frames_have_the_times_of_their_stream():
    timed = Stream("clip")._timed(_frames((8, True), (9, False), (None, False), (12, False), (0, True), (2, False)))
    assert [seconds for seconds, _ in timed] == pytest.approx([0, 0.25, 0.35, 1, 1.1, 1.6])


def test_a_source_without_a_frame_is_an_error_and_one_frame_is_enough():
    assert [seconds for seconds, _ in Stream("clip")._timed(_frames((5, True)))] == [0]
    with pytest.raises(VideoError, match=naming("clip", "frame")):
        list(Stream("clip")._timed(_frames()))


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(VideoError, match=naming(tmp_path / "none.mp4")):
        list(Stream(str(tmp_path / "none.mp4")))


def test_a_file_is_read_for_what_can_be_shown_of_it(tmp_path, monkeypatch):
    """Its frames pass the checks for damage; warnings of the decoder end nothing."""
    (tmp_path / "a.mp4").write_bytes(b"....ftypisom")
    asked = []
    reader = SimpleNamespace(frames=lambda: ["one", "two"], checked=lambda frames: [f"{one} checked" for one in frames], stream="s")
    monkeypatch.setattr(stream, "reading", lambda *given, **more: asked.append((given, more)) or nullcontext(reader))
    monkeypatch.setattr(Stream, "_timed", lambda self, frames: frames)
    assert list(Stream(str(tmp_path / "a.mp4"))) == [("one checked", "s"), ("two checked", "s")]
    assert asked == [((tmp_path / "a.mp4",), {"strict": False})]


class TestGone:
    """A camera that shows two frames and then breaks."""

    @pytest.fixture
    def camera(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "camera.mkv", pattern(2, 32, 32), "mjpeg", "yuvj420p")

        class Line:
            """An open container whose end is an error."""

            def __init__(self):
                self.container = av.open(str(path))
                self.streams, self.metadata = self.container.streams, self.container.metadata

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.container.close()

            def demux(self, stream):
                yield from self.container.demux(stream)
                raise av.error.ConnectionResetError(104, "reset by peer")

        monkeypatch.setattr(stream, "_opened", lambda source: Line())
        return Stream("rtsp://camera")

    def test_its_frames_are_shown_and_then_it_is_said(self, camera):
        seen = []
        with pytest.raises(VideoError, match=naming("rtsp://camera", "reset by peer")):
            for seconds, _ in camera:
                seen.append(round(16 * seconds))
        assert seen == [0, 1]


@pytest.mark.parametrize(
    ("source", "live"),
    [("rtsp://host/1", True), ("/dev/video0", True), ("http://host/a.mp4", True), ("/dev/shm/a.mp4", False), ("video.mp4", False)],
)
def test_what_comes_when_it_comes(source, live):
    assert stream.is_live(source) is live


class TestOpening:
    @pytest.fixture
    def asked(self, monkeypatch):
        """How PyAV was asked to open a source."""
        asked = {}
        monkeypatch.setattr(av, "open", lambda source, **more: asked.update(source=source, **more))
        return asked

    @pytest.mark.parametrize("source", ["rtsp://host/1", "rtsps://host/1"])
    def test_an_address_is_read_over_tcp_and_given_up_after_ten_seconds(self, asked, source):
        stream._opened(source)
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
        assert asked == {"source": source, "options": options, "timeout": 10, "metadata_errors": "replace"}

    def test_a_device_is_one_of_video4linux(self, asked):
        stream._opened("/dev/video2")
        assert asked == {"source": "/dev/video2", "format": "v4l2", "metadata_errors": "replace"}

    def test_without_pyav_the_message_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(UserError, match=naming('"av"', "pip install")):
            next(iter(stream.Stream("rtsp://host/1")))

    @pytest.mark.parametrize("source", ["http://host/live", "file:///etc/hostname", "concat://a|b", "xrtsp://host/1"])
    def test_another_kind_of_address_is_not_opened(self, asked, source):
        with pytest.raises(VideoError, match=naming(source)):
            list(Stream(source))
        assert not asked

    @pytest.mark.parametrize(
        ("error", "reason"), [(av.error.ConnectionRefusedError(111, "refused"), "refused"), (ValueError("no"), "no")]
    )
    def test_why_it_can_not_be_watched_is_said(self, monkeypatch, error, reason):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(av, "open", refuse)
        with pytest.raises(VideoError, match=naming("/dev/video0", reason)):
            list(Stream("/dev/video0"))


def test_a_lost_packet_of_an_rtsp_camera_does_not_end_the_stream():
    with camera([noisy(image) for image in pattern(120)], rate=50, lost=70) as url:
        seen = Stream(url)
        frames = sum(1 for _ in seen)
    assert frames >= 20 and seen.take_lost() > 0
