"""Where clips may come from: links and dots are resolved before the question where a file lies, addresses before the connection."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
from video_files import pattern, write_video

from runtime.errors import VideoError
from runtime.server import fetch
from runtime.server.errors import ApiError
from runtime.server.media import load
from runtime.server.options import ServerOptions
from runtime.server.schema import MediaUrl
from runtime.video import DecodeLimits, sample_frames_limited


def _code(call, *args) -> str:
    with pytest.raises(ApiError) as raised:
        call(*args)
    return raised.value.code


def test_files_are_read_below_the_named_directories_alone(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a b.mp4").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "clips" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "clips-too").mkdir()
    (tmp_path / "clips-too" / "b").write_bytes(b"x")
    options = ServerOptions(media_paths=(tmp_path / "clips",))
    assert load(MediaUrl(url=f"file://{tmp_path}/clips/a%20b.mp4"), options).data == b"content"
    refused = ["clips/link", "clips/../secret", "clips/%2e%2e/secret", "clips-too/b", "clips", "clips/none", "clips/a%00b"]
    assert {_code(load, MediaUrl(url=f"file://{tmp_path}/{path}"), options) for path in refused} == {"media_not_allowed"}
    assert _code(load, MediaUrl(url=f"file://elsewhere{tmp_path}/clips/a%20b.mp4"), options) == "media_not_allowed"


def test_equal_content_has_one_digest_however_it_came(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    options = ServerOptions(media_paths=(tmp_path,))
    digests = {
        load(MediaUrl(**one), options).digest
        for one in ({"url": f"file://{tmp_path}/a"}, {"data": "YWJj"}, {"url": "data:video/mp4;base64,YWJj"})
    }
    assert len(digests) == 1


@pytest.fixture
def host(monkeypatch):
    """A plain HTTP server on loopback that stands in for https://clips.test, whose name resolves to a public address."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers["Host"]))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/none" else 200)
            self.end_headers()
            try:
                for _ in range(100 if self.path == "/large" else 1):
                    self.wfile.write(b"x" * 1000)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connected = []

    def connect(self):
        connected.append(self._address)
        self.sock = socket.socket()  # not create_connection, which would ask getaddrinfo: nothing leaves loopback
        self.sock.connect(server.server_address)

    monkeypatch.setattr(fetch._Pinned, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", _resolving("93.184.216.34"))
    yield connected, seen
    server.shutdown()


def _resolving(*addresses):
    return lambda *_, **__: [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, 443)) for a in addresses]


def test_a_clip_comes_from_a_named_host_at_the_address_that_was_checked(host):
    connected, seen = host
    assert fetch.fetch("https://Clips.test/a.mp4?x=1", ("clips.test",), 5000, 5) == b"x" * 1000
    assert connected == ["93.184.216.34"] and seen == [("/a.mp4?x=1", "clips.test")]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://clips.test/a", "media_not_allowed"),
        ("https://other.test/a", "media_not_allowed"),
        ("https://clips.test.other.test/a", "media_not_allowed"),
        ("https://clips.test:8443/a", "media_not_allowed"),
        ("https://user@clips.test/a", "media_not_allowed"),
        ("https://clips.test@127.0.0.1/a", "media_not_allowed"),
        ("https://clips.test/a b", "invalid_url"),
        ("https://[::1/a", "invalid_url"),
        ("https://clips.test/moved", "media_redirect"),
        ("https://clips.test/none", "media_unavailable"),
        ("https://clips.test/large", "media_too_large"),
    ],
)
def test_urls_that_are_not_fetched(host, url, code):
    assert _code(fetch.fetch, url, ("clips.test",), 5000, 5) == code


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.8"], ["169.254.169.254"], ["::1"], ["fd00::1"], ["::ffff:10.0.0.1"], ["0.0.0.0"], ["224.0.0.1"], ["100.64.0.1"], ["93.184.216.34", "192.168.0.1"]],
)  # fmt: skip
def test_a_name_with_any_private_address_is_not_fetched(host, monkeypatch, addresses):
    monkeypatch.setattr(socket, "getaddrinfo", _resolving(*addresses))
    assert _code(fetch.fetch, "https://clips.test/a.mp4", ("clips.test",), 5000, 5) == "media_not_allowed"
    assert host[0] == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (DecodeLimits(pixels=100), "frames of 128x96"),
        (DecodeLimits(seconds=1), "2 s long"),
        (DecodeLimits(frames=10), "more than 10 frames"),
        (DecodeLimits(streams=0), "1 streams"),
    ],
)
def test_a_clip_over_a_decode_limit_is_refused(tmp_path, limits, message):
    path = write_video(tmp_path / "a.mp4", pattern(32))
    with pytest.raises(VideoError, match=message):
        sample_frames_limited(path, 4, lambda frame: frame, limits)
    assert len(sample_frames_limited(path, 4, lambda frame: frame, DecodeLimits()).frames) == 4


def test_frames_that_grow_beyond_the_header_are_refused_by_the_decoder(tmp_path):
    """A raw MJPEG stream may change its size at any frame."""
    small = write_video(tmp_path / "s.mjpeg", pattern(3, 64, 64), codec="mjpeg", pixel_format="yuvj420p", format="mjpeg")
    large = write_video(tmp_path / "l.mjpeg", pattern(3, 640, 640), codec="mjpeg", pixel_format="yuvj420p", format="mjpeg")
    (tmp_path / "both.mjpeg").write_bytes(small.read_bytes() + large.read_bytes())
    sizes: list[tuple[int, ...]] = []

    def each(frame: np.ndarray) -> np.ndarray:
        sizes.append(frame.shape)
        return frame[:8, :8]

    with pytest.raises(VideoError):
        sample_frames_limited(tmp_path / "both.mjpeg", 6, each, DecodeLimits(pixels=64 * 64))
    assert all(size == (64, 64, 3) for size in sizes)
    assert av.__version__
