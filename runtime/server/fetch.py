"""Fetching a clip from a host that the operator named, and from nowhere else.

https only; the host must be on the list; its addresses are looked up once, all of them must be public, and the connection
goes to the very address that was checked, so that a second DNS answer can't redirect it. No redirects; size limited while
reading, and one time limit for everything from the connection to the last byte, however slowly the host sends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from http.client import HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from runtime.server.errors import ApiError

_CHUNK = 1 << 16


def fetch(url: str, hosts: tuple[str, ...], most: int, seconds: float, context: ssl.SSLContext | None = None) -> bytes:
    """The body behind an https URL. ApiError 400 for what is not allowed, 413 for too much, 422 for what can't be had."""
    host, port, target = _allowed(url, hosts)
    address = _public_address(host, port)
    connection = _Pinned(host, port, address, seconds, context or ssl.create_default_context())
    late = threading.Event()

    def give_up() -> None:
        late.set()
        connection.hang_up()

    timer = threading.Timer(seconds, give_up)
    timer.start()
    try:
        connection.request("GET", target, headers={"User-Agent": "st-gridpool", "Accept": "video/*, image/*"})
        response = connection.getresponse()
        if 300 <= response.status < 400:
            raise ApiError(400, f"{host} redirects this URL; redirects are not followed, give the final one", "media_redirect")
        if response.status != 200:
            raise ApiError(422, f"{host} answers with status {response.status} for this URL", "media_unavailable")
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > most:
                raise ApiError(413, f"the clip is larger than {most} bytes, the most that this server takes", "media_too_large")
        if late.is_set() or response.length:  # of what Content-Length promised, something is missing
            raise ConnectionError
        return bytes(body)
    except (OSError, HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise ApiError(422, f"{host} did not send the clip within {seconds:g} s", "media_timeout") from None
        raise ApiError(422, f"the clip can't be fetched from {host}: {type(error).__name__}", "media_unavailable") from None
    finally:
        timer.cancel()
        connection.close()


def _allowed(url: str, hosts: tuple[str, ...]) -> tuple[str, int, str]:
    """(host, port, path with query) of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port or 443
    except ValueError:
        raise ApiError(400, "the clip's URL can't be read", "invalid_url") from None
    if parts.scheme != "https":
        raise ApiError(400, f'clips are fetched over https only, got "{parts.scheme}:"; or send a data: URL', "media_not_allowed")
    if parts.username or parts.password:
        raise ApiError(400, "a URL with a user name is not fetched", "media_not_allowed")
    if host not in {name.lower() for name in hosts} or port != 443:
        raise ApiError(400, f"clips may not be fetched from {host}:{port}; send a data: URL", "media_not_allowed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(character) <= 32 or ord(character) > 126 for character in target):
        raise ApiError(400, "the clip's URL has characters that must be escaped", "invalid_url")
    return host, port, target


def _public_address(host: str, port: int) -> str:
    """The first address of `host`; ApiError unless every one of them is public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the second: a name that no host can have
        raise ApiError(422, f"{host} has no address", "media_unavailable") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        if not parsed.is_global or parsed.is_multicast:
            raise ApiError(400, f"{host} resolves to an address that is not public; nothing was fetched", "media_not_allowed")
    return addresses[0]


class _Pinned(HTTPSConnection):
    """Connects to the checked address; certificate and Host header are the name's."""

    def __init__(self, host: str, port: int, address: str, timeout: float, context: ssl.SSLContext):
        super().__init__(host, port, timeout=timeout, context=context)
        self._address, self._tls = address, context
        self._line: socket.socket | None = None  # the connection once more: TLS takes the first over while it shakes hands

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self._line = plain.dup()
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)

    def hang_up(self) -> None:
        """End what another thread waits for."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        if self._line is not None:
            self._line.close()
