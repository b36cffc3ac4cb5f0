"""Where clips may come from: links and dots are resolved before the question where a file lies, addresses before the connection."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


class NoTls(ssl.SSLContext):
    """Bytes as they are; `names` are those that certificates were asked for."""

    def __new__(cls):
        one = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        one.names = []
        return one

    def wrap_socket(self, plain, server_hostname):
        self.names.append(server_hostname)
        return plain


@dataclass
class Host:
    """A plain HTTP server on loopback that stands in for https://clips.test, whose name resolves to a public address.

    connected: where sockets were opened to; seen: (path, Host header) of each request; tls: see NoTls.
    """

    connected: list[tuple[str, int]]
    seen: list[tuple[str, str]]
    tls: NoTls

    def fetch(self, path: str, seconds: float = 5) -> bytes:
        return fetch.fetch(f"https://Clips.test{path}", ("clips.test",), 5000, seconds, self.tls)


@pytest.fixture
def host(monkeypatch):
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            one.seen.append((self.path, self.headers["Host"]))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/")
                self.end_headers()
                return
            if self.path == "/slow-headers":
                self.trickle(b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 50 + b"\r\nclip")
                return
            self.send_response({"/none": 404, "/bad": 400}.get(self.path, 200))
            if self.path == "/short":
                self.send_header("Content-Length", "2000")
            self.end_headers()
            if self.path == "/slow-body":
                self.trickle(b"x" * 150)
            else:
                with contextlib.suppress(OSError):
                    for _ in range(100 if self.path == "/large" else 1):
                        self.wfile.write(b"x" * 1000)

        def trickle(self, data):
            with contextlib.suppress(OSError):
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    if stop.wait(0.02):
                        return

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    one = Host([], [], NoTls())

    def create_connection(address, timeout):
        one.connected.append(address)
        connected = socket.socket()  # nothing leaves loopback
        connected.settimeout(timeout)
        connected.connect(server.server_address)
        return connected

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(socket, "getaddrinfo", _resolving("93.184.216.34"))
    yield one
    stop.set()
    server.shutdown()


def _resolving(*addresses):
    return lambda *_, **__: [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, 443)) for a in addresses]


def test_a_clip_comes_from_a_named_host_at_the_address_that_was_checked(host):
    """Not at what a second look at the name would give."""
    assert host.fetch("/a.mp4?x=1") == b"x" * 1000
    assert host.connected == [("93.184.216.34", 443)]
    assert host.seen == [("/a.mp4?x=1", "clips.test")] and host.tls.names == ["clips.test"]


@pytest.mark.parametrize("path", ["/slow-headers", "/slow-body"])
def test_a_host_that_sends_slowly_has_one_time_for_all(host, path):
    """Each byte comes well within the limit, all of them do not."""
    assert _code(host.fetch, path, 0.4) == "media_timeout"


def test_a_clip_that_is_cut_off_on_the_way_is_not_taken(host):
    assert _code(host.fetch, "/short") == "media_unavailable"


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
        ("https://clips.test/caf\u00e9", "invalid_url"),
        ("https://clips.test/a?b=\x7f", "invalid_url"),
        ("https://[::1/a", "invalid_url"),
        ("https://clips.test/moved", "media_redirect"),
        ("https://clips.test/none", "media_unavailable"),
        ("https://clips.test/bad", "media_unavailable"),
        ("https://clips.test/large", "media_too_large"),
    ],
)
def test_urls_that_are_not_fetched(host, url, code):
    assert _code(fetch.fetch, url, ("clips.test",), 5000, 5, host.tls) == code


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.8"], ["169.254.169.254"], ["::1"], ["fd00::1"], ["::ffff:10.0.0.1"], ["0.0.0.0"], ["224.0.0.1"], ["100.64.0.1"], ["93.184.216.34", "192.168.0.1"]],
)  # fmt: skip
def test_a_name_with_any_private_address_is_not_fetched(host, monkeypatch, addresses):
    monkeypatch.setattr(socket, "getaddrinfo", _resolving(*addresses))
    assert _code(fetch.fetch, "https://clips.test/a.mp4", ("clips.test",), 5000, 5) == "media_not_allowed"
    assert host.connected == []


def test_a_clip_s_files_go_with_it_and_where_it_is_refused():
    media = load(MediaUrl(frames=["data:image/png;base64,YWJj", "data:image/png;base64,YWI="]), ServerOptions())
    paths = media.paths
    assert [path.read_bytes() for path in paths] == [b"abc", b"ab"] and media.size == 5
    del media
    gc.collect()
    assert not any(path.exists() for path in paths)
    before = _temporary()
    for refused in ({"data": "A*AA"}, {"frames": ["data:image/png;base64,YWJj", "data:,"]}):
        with pytest.raises(ApiError) as raised:  # which holds the frames that held the clip
            load(MediaUrl(**refused), ServerOptions())
        assert _temporary() == before, raised


def _temporary() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("clip-*"))


def test_frames_in_another_order_or_of_another_rate_are_another_clip():
    urls = ["data:image/png;base64,YWJj", "data:image/png;base64,YWI="]
    asked = [{"frames": urls}, {"frames": urls[::-1]}, {"frames": urls, "fps": 2.0}, {"frames": urls[:1]}, {"url": urls[0]}]
    digests = [load(MediaUrl(**one), ServerOptions()).digest for one in asked]
    joined = load(MediaUrl(frames=["data:image/png;base64,YWJjYQ==", "data:image/png;base64,Yg=="]), ServerOptions()).digest
    assert len({*digests, joined}) == 6


def test_the_limit_holds_for_all_frames_of_a_clip_together():
    frame = "data:image/png;base64," + "QUJD" * 100
    options = ServerOptions(max_media=1000)
    assert load(MediaUrl(frames=[frame] * 3), options).size == 900
    assert _code(load, MediaUrl(frames=[frame] * 4), options) == "media_too_large"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (DecodeLimits(pixels=100), "frames of 128x96"),
        (DecodeLimits(side=100), "frames of 128x96; expected at most 100 pixels a side"),
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
