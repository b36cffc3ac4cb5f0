"""Fetching over https from a stand-in on loopback: which URLs and addresses are allowed, which responses are taken, when it gives up."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator

import pytest
from refusal import naming

from runtime.server import fetch
from runtime.server.errors import ApiError


class Host:
    """Stands in for https://clips.test, whose name resolves to a public address, but speaks plain HTTP on loopback.

    response    the bytes that it sends, `apart` seconds between them
    stays_open  whether it leaves the connection open afterwards
    opened      (address, port, name in the certificate) of each connection
    requests    what it received
    gone        set once the client has closed a connection
    """

    def __init__(self, stop: threading.Event):
        self.response, self.apart, self.stays_open = b"", 0.0, False
        self.opened: list[tuple[str, int, str]] = []
        self.requests: list[bytes] = []
        self.gone, self.stop = threading.Event(), stop

    def serve(self, connection: socket.socket) -> None:
        self.requests.append(connection.recv(65_536))
        try:
            for at in range(len(self.response)) if self.apart else ():
                connection.sendall(self.response[at : at + 1])
                if self.stop.wait(self.apart):
                    return
            connection.sendall(b"" if self.apart else self.response)
            if self.stays_open:
                connection.settimeout(30)
                assert not connection.recv(1)
        except ConnectionError:
            pass
        self.gone.set()

    def fetch(self, url: str = "https://clips.test/a.mp4", most: int = 5000, seconds: float = 30) -> bytes:
        return fetch.fetch(url, ("other.test", "CLIPS.test"), most, seconds)

    def error(self, **asked) -> ApiError:
        with pytest.raises(ApiError) as raised:
            self.fetch(**asked)
        return raised.value


def resolve_to(monkeypatch, *addresses: str) -> None:
    found = [(socket.AF_INET6 if ":" in one else socket.AF_INET, 1, 6, "", (one, 443)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.fixture
def host(monkeypatch) -> Iterator[Host]:
    stop = threading.Event()
    one, open_connection = Host(stop), asyncio.open_connection

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            one.serve(self.request)

    async def opened(address, port, ssl: ssl.SSLContext, server_hostname):
        assert ssl.check_hostname and ssl.verify_mode.name == "CERT_REQUIRED"
        one.opened.append((address, port, server_hostname))
        return await open_connection("127.0.0.1", server.server_address[1])  # nothing leaves loopback

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(asyncio, "open_connection", opened)
        resolve_to(monkeypatch, "93.184.216.34", "93.184.216.35")
        yield one
        stop.set()
        server.shutdown()


def response(body: bytes = b"clip", status: int = 200, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_a_clip_comes_from_an_allowed_host_at_the_address_that_was_checked(host):
    """Not at one that a second look-up of the name would give."""
    host.response = response(Content_Length=4)
    assert host.fetch("https://Clips.test/a.mp4?x=1") == b"clip"
    assert host.opened == [("93.184.216.34", 443, "clips.test")]
    (request,) = host.requests
    lines = request.lower().split(b"\r\n")
    assert lines[0] == b"get /a.mp4?x=1 http/1.1" and b"host: clips.test" in lines


@pytest.mark.parametrize(
    "answer",
    [
        response(Content_Length=4),
        response(),  # it ends with the connection
        response(b"2\r\ncl\r\n2\r\nip\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        response(b"", 103) + response(Content_Length=4),  # an early hint comes before the response
    ],
    ids=["length", "no length", "chunks", "hint"],
)
def test_a_body_is_read_to_its_end(host, answer):
    host.response = answer
    assert host.fetch() == b"clip"


@pytest.mark.parametrize(
    "answer",
    [response(Content_Length=5), response(b"9\r\nclip", Transfer_Encoding="chunked"), b"HTTP/1.1 200", b"", b"\x16\x03\x01 hello\r\n\r\n"],
    ids=["too short", "broken chunk", "no headers", "nothing", "no HTTP"],
)  # fmt: skip
def test_a_response_that_is_incomplete_is_not_taken(host, answer):
    host.response = answer
    error = host.error()
    assert (error.status, error.code) == (422, "media_unavailable") and naming("clips.test").match(str(error))


def test_a_clip_may_have_as_many_bytes_as_allowed(host):
    host.response, host.stays_open = response(bytes(1000), Content_Length=1000), True
    assert len(host.fetch(most=1000)) == 1000
    error = host.error(most=999)
    assert (error.status, error.code) == (413, "media_too_large") and naming("999 bytes").match(str(error))
    host.response = response(bytes(1000))  # endless, for all that can be known
    assert host.error(most=999).code == "media_too_large"


@pytest.mark.parametrize(
    ("status", "answered", "code"),
    [
        (201, 422, "media_unavailable"),
        (299, 422, "media_unavailable"),
        (300, 400, "media_redirect"),
        (302, 400, "media_redirect"),
        (399, 400, "media_redirect"),
        (400, 422, "media_unavailable"),
        (404, 422, "media_unavailable"),
    ],
)
def test_only_status_200_is_a_clip(host, status, answered, code):
    host.response = response(b"", status, Location="http://127.0.0.1/", Content_Length=0)
    error = host.error()
    assert (error.status, error.code) == (answered, code) and naming("clips.test").match(str(error))
    assert len(host.requests) == 1


@pytest.mark.parametrize(
    ("sent", "apart"),
    [(b"", 0.0), (response(b"cl", Content_Length=4), 0.0), (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500, 0.02), (response(b"x" * 900), 0.02)],
    ids=["nothing", "half", "slow headers", "slow body"],
)  # fmt: skip
def test_one_time_limit_covers_everything(host, sent, apart):
    """Also where each byte comes well within the limit."""
    host.response, host.apart, host.stays_open = sent, apart, True
    error = host.error(seconds=0.2)
    assert (error.status, error.code) == (422, "media_timeout") and naming("clips.test", "0.2 s").match(str(error))
    assert host.gone.wait(30)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), "media_timeout"),
        (asyncio.TimeoutError(), "media_timeout"),
        (ssl.SSLCertVerificationError(), "media_unavailable"),
        (ConnectionRefusedError(), "media_unavailable"),
    ],
    ids=repr,
)
def test_a_connection_that_cannot_be_made(monkeypatch, host, error, code):
    async def fail(*_, **__):
        raise error

    monkeypatch.setattr(asyncio, "open_connection", fail)
    got = host.error()
    assert (got.status, got.code) == (422, code)
    assert code == "media_timeout" or naming("clips.test", type(error).__name__).match(str(got))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://clips.test/a", "media_not_allowed"),
        ("https://unknown.test/a", "media_not_allowed"),
        ("https://clips.test.unknown.test/a", "media_not_allowed"),
        ("https://clips.test:8443/a", "media_not_allowed"),
        ("https://me@clips.test/a", "media_not_allowed"),
        ("https://:secret@clips.test/a", "media_not_allowed"),
        ("https://clips.test@127.0.0.1/a", "media_not_allowed"),
        ("https://clips.test/a b", "invalid_url"),
        ("https://clips.test/caf\u00e9", "invalid_url"),
        ("https://clips.test/a?b=\x7f", "invalid_url"),
        ("https://clips.test:99999/a", "invalid_url"),
        ("https://[::1/a", "invalid_url"),
    ],
)
def test_urls_that_are_not_fetched(host, url, code):
    error = host.error(url=url)
    assert (error.status, error.code, host.opened) == (400, code, [])


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://clips.test", "/"),
        ("https://Clips.TEST/a/b?c=d&e", "/a/b?c=d&e"),
        ("https://clips.test.:443/a#part", "/a"),
        ("https://clips.test?a", "/?a"),
        ("https://clips.test/!~", "/!~"),  # the first and the last character that need no escape
    ],
)
def test_what_is_asked_of_which_host(url, target):
    assert fetch._allowed(url, ("other.test", "CLIPS.test")) == ("clips.test", 443, target)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.8"], ["169.254.169.254"], ["::1"], ["fd00::1"], ["fe80::1%eth0"], ["::ffff:10.0.0.1"], ["0.0.0.0"],
     ["224.0.0.1"], ["ff0e::1"], ["192.0.2.1"], ["100.64.0.1"], ["93.184.216.34", "192.168.0.1"]],
)  # fmt: skip
def test_a_name_with_any_private_address_is_not_fetched(host, monkeypatch, addresses):
    resolve_to(monkeypatch, *addresses)
    error = host.error()
    assert (error.status, error.code, host.opened) == (400, "media_not_allowed", []) and naming("clips.test").match(str(error))


def test_the_first_of_a_host_s_public_addresses_is_taken(monkeypatch):
    resolve_to(monkeypatch, "2606:4700::1111", "93.184.216.34", "::ffff:93.184.216.34")
    assert fetch._public_address("clips.test", 443) == "2606:4700::1111"


@pytest.mark.parametrize("error", [socket.gaierror("not known"), UnicodeError("label empty or too long")], ids=repr)
def test_a_host_without_an_address_is_named(host, monkeypatch, error):
    def unknown(*asked, **how):
        assert (asked, how) == (("clips.test", 443), {"type": socket.SOCK_STREAM})
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    got = host.error()
    assert (got.status, got.code) == (422, "media_unavailable") and naming("clips.test").match(str(got))
