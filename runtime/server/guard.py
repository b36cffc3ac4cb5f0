"""ASGI middleware around every route: it checks host, key and drain, adds headers to every response, and counts requests."""

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


class Guard:
    """paths: the routes' paths, which are labels in the metrics; other paths share one label, so that clients cannot add any."""

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
                if not path.startswith(("/v1", "/health", "/metrics")):
                    headers["Content-Security-Policy"] = _PAGE_POLICY
                self.state.metrics.requests.labels(self._label(path), str(message["status"])).inc()
            await send(message)

        request = Request(scope, receive)
        try:
            self._check(request, path)
        except ApiError as error:
            refusal = await body.refuse(request, error, self.state)
            await refusal(scope, receive, counted)
        else:
            await self.app(scope, receive, counted)

    def _label(self, path: str) -> str:
        if path in self.paths:
            return path
        known = path.startswith("/v1/models/") and path.removeprefix("/v1/models/") in self.state.models.served
        return path if known else "other"

    def _check(self, request: Request, path: str) -> None:
        """ApiError if no route may see this request."""
        if _head_size(request) > HEADER_BYTES:  # only if they arrived at once; otherwise protocol.py has refused them
            raise headers_too_large()
        host = request.headers.get("host")
        if self.state.options.keyless_loopback and host is not None and not is_loopback(_name(host)):
            # DNS rebinding: for the browser, a web page whose host name resolves to 127.0.0.1 has this origin and may read answers
            message = f'this server answers only to localhost, not to "{host[:100]}"; to serve other hosts, start it with --api-key'
            raise ApiError(403, message, "host_not_allowed")
        if not path.startswith("/v1"):
            return  # the page, health and metrics are public
        if self.key is not None and not _has_key(request, self.key):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        self.state.admission.check_open()


def _name(host: str) -> str:
    """A Host header without its port, and an IPv6 address without its brackets; "" if it is malformed."""
    match = _HOST.fullmatch(host.strip())
    return (match["address"] or match["name"] or "") if match else ""


def _head_size(request: Request) -> int:
    """Bytes of the target and of the names and values of all headers."""
    scope = request.scope
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return target + sum(len(name) + len(value) for name, value in scope["headers"])


def _has_key(request: Request, key: bytes) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # the time that compare_digest takes does not depend on where the two differ
    return hmac.compare_digest(token.strip().encode("latin-1"), key) and scheme.lower() == "bearer"
