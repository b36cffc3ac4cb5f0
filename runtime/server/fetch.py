"""Fetch a clip from a host that the operator allowed, and from nowhere else.

https only; the host must be on the list; its addresses are looked up once, all of them must be public, and the connection goes to
the very address that was checked, so that a second DNS answer cannot redirect it. Redirects are not followed. The size is limited
while reading, and one time limit covers everything from the connection to the last byte, however slowly the host sends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from urllib.parse import urlsplit

import h11

from runtime.server.errors import ApiError, media_too_large

_CHUNK = 1 << 16


def fetch(url: str, hosts: tuple[str, ...], most: int, seconds: float) -> bytes:
    """The body behind an https URL; blocking, in a thread without an event loop.

    ApiError 400 if the URL is not allowed, 413 for more than `most` bytes, 422 if the clip cannot be had.
    """
    host, port, target = _allowed(url, hosts)
    address = _public_address(host, port)
    try:
        return asyncio.run(asyncio.wait_for(_get(host, port, address, target, most), seconds))
    except (TimeoutError, asyncio.TimeoutError):  # noqa: UP041: two classes before Python 3.11
        raise ApiError(422, f"{host} did not send the clip within {seconds:g} s", "media_timeout") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise ApiError(422, f"the clip cannot be fetched from {host}: {type(error).__name__}", "media_unavailable") from None


async def _get(host: str, port: int, address: str, target: str, most: int) -> bytes:
    # the certificate must be for the host, whatever the address
    reader, writer = await asyncio.open_connection(address, port, ssl=ssl.create_default_context(), server_hostname=host)
    try:
        http = h11.Connection(h11.CLIENT)
        headers = [(b"Host", host.encode("idna")), (b"User-Agent", b"st-gridpool"), (b"Accept", b"video/*, image/*")]
        writer.write(http.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        http.send(h11.EndOfMessage())
        body = bytearray()
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_CHUNK))
            elif isinstance(event, h11.Response):
                _check_status(host, event.status_code)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise media_too_large(most)
        return bytes(body)
    finally:
        writer.transport.abort()


def _check_status(host: str, status: int) -> None:
    if 300 <= status < 400:
        raise ApiError(400, f"{host} redirects this URL; redirects are not followed, use the final URL", "media_redirect")
    if status != 200:
        raise ApiError(422, f"{host} answered with status {status} for this URL", "media_unavailable")


def _allowed(url: str, hosts: tuple[str, ...]) -> tuple[str, int, str]:
    """(host, port, path with query) of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port or 443
    except ValueError:
        raise ApiError(400, "the clip's URL is malformed", "invalid_url") from None
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
