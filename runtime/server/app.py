"""The ASGI app: routes, one form of errors, and what happens when a client disconnects or the server shuts down.

POST /v1/chat/completions   POST /v1/video/tokens   POST /v1/video/inspect   GET /v1/models[/{model}]
GET /health   GET /health/ready   GET /metrics   GET / (the page)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from runtime.server import body, chat, video
from runtime.server.admission import unless
from runtime.server.chat_job import Job
from runtime.server.errors import ApiError, api_error, forget_frames
from runtime.server.guard import Guard
from runtime.server.memory import Held
from runtime.server.schema import ChatRequest, VideoRequest
from runtime.server.state import State
from runtime.server.stream import Stream

log = logging.getLogger("runtime.server")
PAGE = Path(__file__).parent / "page"
_GET = ["GET", "HEAD"]
_CLIENT_GONE = 499  # only the metrics show it
_Request = TypeVar("_Request", ChatRequest, VideoRequest)
_Result = TypeVar("_Result")


class EventStream(StreamingResponse):
    """Server-sent events. However they end, their source is closed and the request's resources are released."""

    def __init__(self, events: AsyncGenerator[bytes, None], resources: AsyncExitStack):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second is for nginx, which would buffer
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.events, self.resources = events, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.resources, aclosing(self.events):
            await super().__call__(scope, receive, send)


def create_app(state: State) -> FastAPI:
    """The app over loaded models; it closes them when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(state.close)

    app = FastAPI(title="st-gridpool", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_routes(app, state)
    _add_errors(app, state)
    app.add_middleware(Guard, state=state, paths=[route.path for route in app.routes if isinstance(route, Route)])
    return app


def _add_routes(app: FastAPI, state: State) -> None:
    options, admission = state.options, state.admission

    async def read(request: Request, kind: type[_Request], share: Held) -> _Request:
        """The parsed body. The request is not yet accepted while it is read, but its bytes count in `share`."""
        admission.check()
        return await unless(body.read(request, kind, options, share), admission.until_draining())

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        start = time.perf_counter()

        async def work(resources: AsyncExitStack, share: Held) -> Response:
            job = Job.of(await read(request, ChatRequest, share))
            deadline = resources.enter_context(admission.request())
            ready = await _working(request, state, chat.check(state, job, share))
            resources.callback(ready.close)
            if not job.request.stream:
                return JSONResponse(await _working(request, state, chat.complete(state, ready, deadline, start)))
            answer = await resources.enter_async_context(Stream(state, ready, deadline, start))
            await _working(request, state, answer.grace())
            return EventStream(answer.events(), resources.pop_all())

        return await _respond(request, state, work)

    def add_video_route(path: str, answer: Callable[..., Coroutine[Any, Any, Response]]) -> None:
        @app.post(path)
        async def route(request: Request) -> Response:
            async def work(resources: AsyncExitStack, share: Held) -> Response:
                job = video.Job(await read(request, VideoRequest, share))
                deadline = resources.enter_context(admission.request())
                return await _working(request, state, answer(state, job, deadline, share))

            return await _respond(request, state, work)

    add_video_route("/v1/video/tokens", video.tokens)
    add_video_route("/v1/video/inspect", video.inspect)

    @app.api_route("/v1/models", methods=_GET)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card() for model in state.models.served.values()]}

    @app.api_route("/v1/models/{name:path}", methods=_GET)
    async def model(name: str) -> dict[str, Any]:
        return state.models[name].card()

    @app.api_route("/health", methods=_GET)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/health/ready", methods=_GET)
    async def ready() -> Response:
        reason = state.not_ready()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @app.api_route("/metrics", methods=_GET)
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(request: Request) -> Response:
        name = request.scope["path"].strip("/") or "index.html"
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    for path in ("/", "/page.js", "/page.css"):
        app.add_route(path, page)


async def _respond(request: Request, state: State, work: Callable[[AsyncExitStack, Held], Awaitable[Response]]) -> Response:
    """Run `work`. If it fails, the request's resources are released before the error's response is sent."""
    async with AsyncExitStack() as resources:
        try:
            return await work(resources, resources.enter_context(state.memory.hold()))
        except Exception as error:
            failed = _api_error(request, error)
            forget_frames(error)
    return await body.refuse(request, failed, state)


async def _working(request: Request, state: State, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client disconnects or the time to drain is over."""
    return await unless(work, _until_hung_up(request), state.admission.until_ended())


async def _until_hung_up(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ApiError(_CLIENT_GONE, "the client disconnected", "client_gone")


def _add_errors(app: FastAPI, state: State) -> None:
    @app.exception_handler(ApiError)
    async def of_this_server(request: Request, error: ApiError) -> Response:
        return await body.refuse(request, error, state)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        path = request.scope["path"][:200]  # not request.url, which can't be built from every Host
        text = {404: f"no such path: {path}", 405: f"{path} does not accept {request.method}"}
        message = text.get(error.status_code, str(error.detail))
        return await body.refuse(request, ApiError(error.status_code, message, headers=dict(error.headers or {})), state)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return body.response(_api_error(request, error), complete=False)  # only routes without a body end here


def _api_error(request: Request, error: Exception) -> ApiError:
    answer = api_error(error)
    if answer.status == 500:
        number = token_hex(6)
        log.error("%s %s failed (%s)", request.method, request.scope["path"], number, exc_info=error)
        answer = ApiError(500, f"the server failed on this request; its log says why under {number}", "internal_error")
    return answer
