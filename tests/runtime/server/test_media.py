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
from refusal import naming
from video_files import pattern, write_video

from runtime.core.errors import VideoError
from runtime.media.clip import DecodeLimits, sample_frames_limited
from runtime.server import fetch, media
from runtime.server.errors import ApiError
from runtime.server.media import load
from runtime.server.options import ServerOptions
from runtime.server.schema import MediaUrl


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


PIXEL = "data:image/png;base64,YWJj"


@pytest.mark.parametrize(
    ("asked", "status", "code", "message"),
    [
        ({}, 400, "invalid_media", "a clip needs one of url, data and frames"),
        ({"url": PIXEL, "data": "YWJj"}, 400, "invalid_media", "a clip needs one of url, data and frames"),
        ({"frames": [PIXEL], "data": "YWJj"}, 400, "invalid_media", "a clip needs one of url, data and frames"),
        ({"frames": []}, 400, "invalid_media", "a clip of no frames; expected at least one"),
        ({"data": ""}, 422, "invalid_video", r"the clip is empty \(0 bytes\)"),
        ({"frames": [PIXEL, "data:image/png;base64,"]}, 422, "invalid_video", r"the clip is empty \(0 bytes\)"),
        ({"url": "https://clips.test/a"}, 400, "media_not_allowed", "this server takes clips as data: URLs only"),
        ({"url": "rtsp://clips.test/a"}, 400, "media_not_allowed", "this server takes clips as data: URLs only"),
        ({"url": "file:///a"}, 400, "media_not_allowed", "this server reads no files; send a data: URL"),
        ({"url": "data:video/mp4,YWJj"}, 400, "invalid_url", "not of the form data:video/mp4;base64"),
        ({"url": f"data:video/mp4;a={'b' * 1024};base64,YWJj"}, 400, "invalid_url", "not of the form data:video/mp4;base64"),
        ({"url": "data:text/html;base64,YWJj"}, 400, "invalid_media", r'is of type "text/html", expected video/\* or image/\*'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_clip_is_refused_with_what_is_expected(asked, status, code, message):
    with pytest.raises(ApiError, match=message) as raised:
        load(MediaUrl(**asked), ServerOptions())
    assert (raised.value.status, raised.value.code) == (status, code)


@pytest.mark.parametrize(
    "kind", ["video/mp4", "IMAGE/png", "application/octet-stream", "binary/octet-stream", "", "video/mp4;codecs=a"]
)
def test_what_is_in_a_data_url_is_found_out_by_decoding(kind):
    assert load(MediaUrl(url=f" data:{kind}; Base64 ,YWJj"), ServerOptions()).data == b"abc"


@pytest.mark.parametrize(
    ("asked", "contents", "fps"),
    [
        ({"url": PIXEL, "fps": 2.0}, [b"abc"], None),  # a file has its own rate
        ({"data": "YWJj", "fps": 2.0}, [b"abc"], None),
        ({"frames": [PIXEL]}, [b"abc"], 1.0),
        ({"frames": [PIXEL, PIXEL], "fps": 2.0}, [b"abc", b"abc"], 2.0),
        ({"url": "data:video/jpeg;base64,YWJj,YWI="}, [b"abc", b"ab"], 1.0),
        ({"url": "data:video/jpeg;base64,YWJj"}, [b"abc"], None),
    ],
)
def test_a_clip_of_frames_has_a_rate(asked, contents, fps):
    clip = load(MediaUrl(**asked), ServerOptions())
    assert ([path.read_bytes() for path in clip.paths], clip.fps) == (contents, fps)


def test_as_many_frames_as_are_taken_and_one_more(monkeypatch):
    monkeypatch.setattr(media, "MAX_FRAMES", 3)
    url = "data:video/jpeg;base64,YWJj,YWI=,YQ=="
    assert load(MediaUrl(url=url), ServerOptions()).size == 6
    with pytest.raises(ApiError, match=naming("3 frames")):
        load(MediaUrl(url=f"{url},YQ=="), ServerOptions())


def test_a_clip_may_have_as_many_bytes_as_are_taken():
    assert load(MediaUrl(data="YWJj"), ServerOptions(max_media=3)).size == 3
    with pytest.raises(ApiError, match=naming("2 bytes")) as raised:
        load(MediaUrl(data="YWJj"), ServerOptions(max_media=2))
    assert raised.value.status == 413


@pytest.mark.parametrize(("more", "taken"), [("\n" * 4, True), ("\n" * 7, True), ("\n" * 8, False)])
@pytest.mark.parametrize("head", ["", f"data:video/mp4;a={'b' * 900};base64,"])
def test_text_for_more_than_twice_the_bytes_is_not_even_decoded(more, taken, head):
    """Three bytes are the most, which are four characters, and line ends are none of the content."""
    one = MediaUrl(**{"url" if head else "data": f"{head}YWJj{more}"})
    if taken:
        assert load(one, ServerOptions(max_media=3)).data == b"abc"
    else:
        assert _code(load, one, ServerOptions(max_media=3)) == "media_too_large"


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
    with pytest.raises(ApiError, match=r"clips\.test .* 0\.4 s") as raised:
        host.fetch(path, 0.4)
    assert (raised.value.status, raised.value.code) == (422, "media_timeout")


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
    ("url", "allowed"),
    [
        ("https://clips.test", ("clips.test", 443, "/")),
        ("https://Clips.TEST/a/b?c=d&e", ("clips.test", 443, "/a/b?c=d&e")),
        ("https://clips.test.:443/a#part", ("clips.test", 443, "/a")),
        ("https://clips.test?a", ("clips.test", 443, "/?a")),
        ("https://clips.test/!~", ("clips.test", 443, "/!~")),  # the first and the last character that need no escape
    ],
)
def test_what_is_asked_of_which_host(url, allowed):
    assert fetch._allowed(url, ("other.test", "CLIPS.test")) == allowed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://clips.test/a", 'clips are fetched over https only, got "http:"; or send a data: URL'),
        ("https://:secret@clips.test/a", "a URL with a user name is not fetched"),
        ("https://me@clips.test/a", "a URL with a user name is not fetched"),
        ("https://other.test/a", "clips may not be fetched from other.test:443; send a data: URL"),
        ("https://clips.test:8443/a", "clips may not be fetched from clips.test:8443; send a data: URL"),
        ("https://clips.test/a b", "the clip's URL has characters that must be escaped"),
        ("https://clips.test/a\x7f", "the clip's URL has characters that must be escaped"),
        ("https://clips.test:99999/a", "the clip's URL can't be read"),
    ],
)
def test_why_a_url_is_not_fetched(url, message):
    with pytest.raises(ApiError) as raised:
        fetch._allowed(url, ("clips.test",))
    assert (raised.value.status, str(raised.value)) == (400, message)


def test_the_first_of_a_host_s_addresses_is_taken_and_one_without_any_is_said(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", _resolving("2606:4700::1111", "93.184.216.34", "::ffff:93.184.216.34"))
    assert fetch._public_address("clips.test", 443) == "2606:4700::1111"

    for error in (socket.gaierror("not known"), UnicodeError("label empty or too long")):  # no such name, and no name at all

        def unknown(*_, error=error, **__):
            raise error

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(ApiError, match=r"clips\.test") as raised:
            fetch._public_address("clips.test", 443)
        assert (raised.value.status, raised.value.code) == (422, "media_unavailable")


def test_a_fetched_clip_may_have_as_many_bytes_as_are_taken(host):
    assert len(fetch.fetch("https://clips.test/a", ("clips.test",), 1000, 5, host.tls)) == 1000
    with pytest.raises(ApiError, match=naming("999 bytes")) as raised:
        fetch.fetch("https://clips.test/a", ("clips.test",), 999, 5, host.tls)
    assert raised.value.status == 413


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/moved", 400, "clips.test redirects this URL; redirects are not followed, give the final one"),
        ("/none", 422, "clips.test answers with status 404 for this URL"),
        ("/short", 422, "the clip can't be fetched from clips.test: ConnectionError"),
    ],
)
def test_what_a_host_did_is_said(host, path, status, message):
    with pytest.raises(ApiError) as raised:
        host.fetch(path)
    assert (raised.value.status, str(raised.value)) == (status, message)


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
        (DecodeLimits(frames=10), "at most 10 frames"),
        (DecodeLimits(streams=0), "1 streams"),
        # the last of the four is frame 24, and the only keyframe is the first
        (
            DecodeLimits(decoded_pixels=25 * 128 * 96 - 1),
            "needs 25 frames of 128x96 decoded; expected at most 307199 pixels in all",
        ),
    ],
)
def test_a_clip_over_a_decode_limit_is_refused(tmp_path, limits, message):
    path = write_video(tmp_path / "a.mp4", pattern(32))
    with pytest.raises(VideoError, match=message):
        sample_frames_limited(path, 4, lambda frame: frame, limits)
    for enough in (DecodeLimits(), DecodeLimits(decoded_pixels=25 * 128 * 96)):
        assert len(sample_frames_limited(path, 4, lambda frame: frame, enough).frames) == 4


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
