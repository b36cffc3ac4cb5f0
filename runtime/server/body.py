"""Reading a request: JSON only, within limits of size, time and memory, parsed off the event loop.

The limits are checked while reading, whatever Content-Length says. A body has a fixed number of seconds, plus one for each half MiB
received: a stalled one is given up soon, and a slow connection still gets through. What exceeds a limit is read for a while and
discarded, because a client that is still sending would see a connection reset instead of the error.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from runtime.server.errors import ApiError
from runtime.server.memory import Held
from runtime.server.options import ServerOptions
from runtime.server.schema import parse

if TYPE_CHECKING:
    from runtime.server.state import State

_SLOWEST = 1 << 19  # bytes per second
_PATIENCE, _PAUSE = 10.0, 1.0  # seconds for discarding, and for each wait for something to discard
_SMALL = 1 << 16  # bytes: a smaller body is parsed without a thread

_Model = TypeVar("_Model", bound=BaseModel)


async def read(request: Request, model: type[_Model], options: ServerOptions, held: Held) -> _Model:
    """The body as `model`; its bytes are counted in `held`. ApiError 400, 408, 413, 415, 429."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # this also keeps out forms of other sites: browsers ask before they send JSON across origins
        raise ApiError(415, f'Content-Type is "{kind}", expected application/json', "unsupported_media_type")
    body = await _bounded(request, options.max_body, options.body_seconds, held)
    if len(body) < _SMALL:
        return parse(model, body)
    async with held.memory.parsing:
        return await asyncio.to_thread(parse, model, body)


async def refuse(request: Request, error: ApiError, state: State) -> JSONResponse:
    """The error's response, after the rest of the request was read; if that is not possible, the response closes the connection."""
    waits = error.status == 408 or state.admission.draining
    complete = getattr(request.state, "body_read", False) or (not waits and await _discard(request, 4 * state.options.max_body))
    return response(error, complete)


def response(error: ApiError, complete: bool) -> JSONResponse:
    """The error's response, which closes the connection unless the request was read completely."""
    headers = error.headers if complete else error.headers | {"Connection": "close"}
    return JSONResponse(error.body(), error.status, headers)


async def _discard(request: Request, most: int) -> bool:
    """Read the rest of a refused request's body, up to `most` bytes while they keep coming; whether that was all of it."""
    size, end = 0, time.monotonic() + _PATIENCE
    while size < most and time.monotonic() < end:
        try:
            message = await asyncio.wait_for(request.receive(), _PAUSE)
        except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
            return False
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            request.state.body_read = True
            return True
    return False


async def _bounded(request: Request, limit: int, seconds: float, held: Held) -> bytearray:
    body, request.state.body_read = bytearray(), False
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)
    start = time.monotonic()
    while not request.state.body_read:
        allowed = seconds + len(body) / _SLOWEST
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, start + allowed - time.monotonic()))
        except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
            raise ApiError(408, f"the request was incomplete after {allowed:.0f} s; send it faster", "request_timeout") from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client disconnected before its request was complete", "incomplete_request")
        request.state.body_read = not message.get("more_body", False)
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        held.grow(len(chunk))
        body += chunk
    return body


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit} bytes, the most that this server takes", "request_too_large")
