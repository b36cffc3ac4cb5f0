"""ASGI middleware around every route: the host, the key, the drain, headers of every response, the count of requests."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server import body
from runtime.server.errors import ApiError
from runtime.server.options import is_loopback
from runtime.server.protocol import HEADER_BYTES, headers_too_large
from runtime.server.state import State

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HOST = re.compile(r"(?:\[(?P<address>[^][]*)\]|(?P<name>[^][:]*))(?::\d*)?")
_OPEN = ("/health", "/metrics")  # no key: nothing in them is anybody's


class Guard:
    """paths: the routes', each of which is a label of the metrics; all other paths are one, whatever anybody asks for."""

    def __init__(self, app: ASGIApp, state: State, paths: Collection[str]):
        self.app, self.state, self.paths = app, state, frozenset(paths)
        self.key = state.options.api_key.encode() if state.options.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if not path.startswith(("/v1", *_OPEN)):
                    headers["Content-Security-Policy"] = _PAGE_POLICY
                self.state.metrics.requests.labels(self._label(path), str(message["status"])).inc()
            await send(message)

        request = Request(scope, receive)
        refused = self._refusal(request, path)
        if refused is None:
            await self.app(scope, receive, counted)
        else:
            await (await body.refuse(request, refused, self.state))(scope, receive, counted)

    def _label(self, path: str) -> str:
        if path in self.paths:
            return path
        known = path.startswith("/v1/models/") and path.removeprefix("/v1/models/") in self.state.models.served
        return path if known else "other"

    def _refusal(self, request: Request, path: str) -> ApiError | None:
        if _head_size(request) > HEADER_BYTES:  # in one piece; more that comes in several is not even kept (protocol.py)
            return headers_too_large()
        host = request.headers.get("host")
        if self.state.options.keyless_loopback and host is not None and not is_loopback(_name(host)):
            # a page whose name is made to resolve to 127.0.0.1 would be of this origin, for the browser, and read the answers
            message = f'this server answers to localhost alone, not to the host "{host[:100]}"; start it with --api-key for others'
            return ApiError(403, message, "host_not_allowed")
        if not path.startswith("/v1"):
            return None
        if self.key is not None and not _has_key(request, self.key):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        try:
            self.state.admission.check_open()
        except ApiError as error:
            return error
        return None


def _name(host: str) -> str:
    """A Host header without its port, and an IPv6 address without its brackets; "" where it is not of that form."""
    match = _HOST.fullmatch(host.strip())
    return (match["address"] or match["name"] or "") if match else ""


def _head_size(request: Request) -> int:
    """Bytes of the target and of all headers' names and values."""
    scope = request.scope
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return target + sum(len(name) + len(value) for name, value in scope["headers"])


def _has_key(request: Request, key: bytes) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # the comparison's time does not depend on where the two differ
    return hmac.compare_digest(token.strip().encode("latin-1"), key) and scheme.lower() == "bearer"
