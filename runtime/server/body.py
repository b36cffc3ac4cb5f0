"""Reading a request: JSON only, never more than the limit, parsed off the event loop.

The limit holds while reading, whatever Content-Length says. What comes beyond it is read for a while and thrown away, because
a client that is still sending would see a reset connection instead of the 413.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from runtime.server.errors import ApiError
from runtime.server.schema import parse

_PATIENCE = 10.0  # seconds of throwing away
_SMALL = 1 << 16  # bytes that are parsed at once, without a thread

_Model = TypeVar("_Model", bound=BaseModel)


async def read(request: Request, model: type[_Model], limit: int, seconds: float) -> _Model:
    """The body as `model`. ApiError 400, 408, 413, 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps other sites' forms out: a browser asks before it sends JSON across origins
        raise ApiError(415, f'Content-Type is "{kind}", expected application/json', "unsupported_media_type")
    try:
        body = await asyncio.wait_for(_bounded(request, limit), seconds)
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its request was complete", "incomplete_request") from None
    except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
        raise ApiError(408, f"the request was not complete after {seconds:g} s", "request_timeout") from None
    return parse(model, body) if len(body) < _SMALL else await asyncio.to_thread(parse, model, body)


async def throw_away(request: Request, most: int) -> None:
    """Read what is left of a refused request's body, at most `most` bytes and a few seconds of it."""
    if getattr(request.state, "body_read", False):
        return

    async def drain() -> None:
        size = 0
        while size < most:
            message = await request.receive()
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(drain(), _PATIENCE)
    except (asyncio.TimeoutError, RuntimeError):
        return


async def _bounded(request: Request, limit: int) -> bytes:
    body, request.state.body_read = bytearray(), False
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    while not request.state.body_read:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        request.state.body_read = not message.get("more_body", False)
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit} bytes, the most that this server takes", "request_too_large")
