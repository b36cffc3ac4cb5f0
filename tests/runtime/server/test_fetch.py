"""One fetch on a stand-in for its connection: which answers are taken, when it is given up, and what is closed."""

from __future__ import annotations

import socket
import ssl
import threading
from types import SimpleNamespace

import pytest
from refusal import naming

from runtime.server import fetch
from runtime.server.errors import ApiError


@pytest.fixture
def host(monkeypatch):
    """host(status, pieces, …): fetch() from a host that answers so; `log` is what was done to the connection."""

    def answering(status: int = 200, pieces: tuple[bytes, ...] = (b"abc",), left: int | None = 0, error: Exception | None = None):
        log, timers = [], []

        def read1(size: int) -> bytes:
            assert size == 65_536
            if error:
                raise error
            return rest.pop(0) if rest else b""

        class Connection:
            def __init__(self, *arguments):
                log.append(arguments)

            def request(self, method, target, headers):
                log.append((method, target, headers))

            def getresponse(self):
                return SimpleNamespace(status=status, read1=read1, length=left)

            def hang_up(self):
                log.append("hung up")

            def close(self):
                log.append("closed")

        class Timer:
            def __init__(self, seconds, what):
                timers.append((seconds, what))

            def start(self):
                log.append("clock")

            def cancel(self):
                log.append("stopped")

        rest = list(pieces)
        monkeypatch.setattr(fetch, "_Pinned", Connection)
        monkeypatch.setattr(fetch, "_public_address", lambda host, port: f"address of {host}:{port}")
        monkeypatch.setattr(fetch.threading, "Timer", Timer)
        return log, timers

    return answering


def get(most: int = 3) -> bytes:
    return fetch.fetch("https://clips.test/a?b", ("clips.test",), most, 7.5, "tls")


def test_one_time_for_all_and_everything_is_closed(host):
    log, timers = host(pieces=(b"a", b"bc"))
    assert get() == b"abc"
    headers = {"User-Agent": "st-gridpool", "Accept": "video/*, image/*"}
    opened = ("clips.test", 443, "address of clips.test:443", 7.5, "tls")
    assert log == [opened, "clock", ("GET", "/a?b", headers), "stopped", "closed"] and timers[0][0] == 7.5


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (199, 422, "media_unavailable"),
        (299, 422, "media_unavailable"),
        (300, 400, "media_redirect"),
        (399, 400, "media_redirect"),
        (400, 422, "media_unavailable"),
        (201, 422, "media_unavailable"),
    ],
)
def test_only_200_is_an_answer(host, status, said, code):
    log, _ = host(status)
    with pytest.raises(ApiError) as raised:
        get()
    assert (raised.value.status, raised.value.code, log[-2:]) == (said, code, ["stopped", "closed"])


@pytest.mark.parametrize(("pieces", "left"), [((b"ab", b"cd"), 0), ((b"ab",), 1)])
def test_too_much_and_too_little(host, pieces, left):
    host(pieces=pieces, left=left)
    with pytest.raises(ApiError) as raised:
        get()
    assert raised.value.code == ("media_unavailable" if left else "media_too_large")


def test_an_answer_of_no_known_length_ends_where_it_ends(host):
    host(left=None)
    assert get() == b"abc"


@pytest.mark.parametrize("left", [0, 5])
def test_what_comes_after_the_time_is_not_taken(host, monkeypatch, left):
    log, timers = host(left=left)
    monkeypatch.setattr(fetch._Pinned, "request", lambda *_, **__: timers[0][1]())
    with pytest.raises(ApiError, match=r"clips\.test .* 7\.5 s") as raised:
        get()
    assert (raised.value.status, raised.value.code) == (422, "media_timeout") and "hung up" in log


@pytest.mark.parametrize(
    ("error", "code"),
    [(TimeoutError(), "media_timeout"), (ssl.SSLError(), "media_unavailable"), (ConnectionResetError(), "media_unavailable"),
     (fetch.HTTPException(), "media_unavailable")],
)  # fmt: skip
def test_what_went_wrong_on_the_way(host, error, code):
    log, _ = host(error=error)
    with pytest.raises(ApiError) as raised:
        get()
    assert (raised.value.status, raised.value.code, log[-1]) == (422, code, "closed")
    assert code == "media_timeout" or naming("clips.test", type(error).__name__).match(str(raised.value))


def test_the_line_can_be_hung_up_by_another_thread_and_is_closed(monkeypatch):
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    monkeypatch.setattr(
        socket, "create_connection", lambda address, timeout: ours if (address, timeout) == (("1.2.3.4", 443), 5) else None
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    one = fetch._Pinned("clips.test", 443, "1.2.3.4", 5, tls)
    one.hang_up(), one.close()  # before there is a line
    one._tls = SimpleNamespace(wrap_socket=lambda plain, server_hostname: names.append(server_hostname) or plain)
    names = []
    one.connect()
    assert names == ["clips.test"] and one.sock is ours
    waiting = threading.Thread(target=lambda: names.append(one.sock.recv(1)))
    waiting.start()
    one.hang_up()
    waiting.join(10)
    assert names[1:] == [b""]
    line = one._line
    one.close()
    assert line.fileno() == -1
    one.hang_up()  # of what is closed already
    theirs.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.8", "169.254.1.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "224.0.0.1", "ff0e::1", "192.0.2.1"],
)
def test_an_address_that_is_not_public(monkeypatch, address):
    def found(host, port, type):
        assert (host, port, type) == ("clips.test", 443, socket.SOCK_STREAM)
        return [(socket.AF_INET, 1, 6, "", (one, 443)) for one in ("93.184.216.34", address)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(ApiError, match=naming("clips.test")) as raised:
        fetch._public_address("clips.test", 443)
    assert (raised.value.status, raised.value.code) == (400, "media_not_allowed")
