"""ASGI middleware around every route: the key, the drain, headers of every response, the count of requests."""

from __future__ import annotations

import hmac

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server import body
from runtime.server.errors import ApiError
from runtime.server.state import State

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_OPEN = ("/health", "/metrics")  # no key: nothing in them is anybody's


class Guard:
    def __init__(self, app: ASGIApp, state: State):
        self.app, self.state = app, state
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
                known = path if message["status"] not in (404, 405) else "other"  # no metric for whatever anybody asks for
                self.state.metrics.requests.labels(known, str(message["status"])).inc()
            await send(message)

        refused = self._refusal(Request(scope)) if path.startswith("/v1") else None
        if refused is None:
            await self.app(scope, receive, counted)
            return
        await body.throw_away(Request(scope, receive), self.state.options.max_body)
        await response(refused)(scope, receive, counted)

    def _refusal(self, request: Request) -> ApiError | None:
        if self.key is not None and not _has_key(request, self.key):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        try:
            self.state.admission.check_open()
        except ApiError as error:
            return error
        return None


def response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def _has_key(request: Request, key: bytes) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # the comparison's time does not depend on where the two differ
    return hmac.compare_digest(given.strip().encode("latin-1"), key) and scheme.lower() == "bearer"
