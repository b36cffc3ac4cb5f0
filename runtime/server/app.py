"""The ASGI app: routes, the key, one way for errors, and what happens when a client goes away or the server ends.

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
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from runtime.server import body, chat, video
from runtime.server.errors import ApiError, api_error
from runtime.server.guard import Guard, response
from runtime.server.schema import ChatRequest, VideoRequest
from runtime.server.state import State

log = logging.getLogger("runtime.server")
PAGE = Path(__file__).parent / "page"
_CLIENT_GONE = 499  # nobody reads it; it marks the request in the metrics


class EventStream(StreamingResponse):
    """Server-sent events; however they end, their source is closed and what the request held is let go."""

    def __init__(self, events: AsyncGenerator[bytes, None], held: AsyncExitStack):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.events, self.held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.held, aclosing(self.events):
            await super().__call__(scope, receive, send)


def create_app(state: State) -> FastAPI:
    """The app over loaded models; it closes them when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(state.close)

    app = FastAPI(title="st-gridpool", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gridpool = state
    _add_routes(app, state)
    _add_errors(app)
    app.add_middleware(Guard, state=state)
    return app


def _add_routes(app: FastAPI, state: State) -> None:
    options = state.options

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        start = time.perf_counter()

        async def work(held: AsyncExitStack) -> Response:
            deadline = held.enter_context(state.admission.request())
            asked = await body.read(request, ChatRequest, options.max_body, options.deadline)

            async def answer() -> Response:
                answering = await chat.prepare(state, asked, deadline, start)
                if not asked.stream:
                    return JSONResponse(await chat.whole(state, answering))
                first = await chat.first_piece(state, answering)
                usage = bool(asked.stream_options and asked.stream_options.include_usage)
                return EventStream(chat.events(state, answering, first, usage), held.pop_all())

            return await _unless_gone(request, answer())

        return await _answered(request, options.max_body, work)

    @app.post("/v1/video/tokens")
    async def tokens(request: Request) -> Response:
        async def work(held: AsyncExitStack) -> Response:
            deadline = held.enter_context(state.admission.request())
            asked = await body.read(request, VideoRequest, options.max_body, options.deadline)
            content, headers = await _unless_gone(request, video.tokens(state, asked, deadline))
            return Response(content, media_type=video.CONTENT_TYPES[asked.format], headers=headers)

        return await _answered(request, options.max_body, work)

    @app.post("/v1/video/inspect")
    async def inspect(request: Request) -> Response:
        async def work(held: AsyncExitStack) -> Response:
            deadline = held.enter_context(state.admission.request())
            asked = await body.read(request, VideoRequest, options.max_body, options.deadline)
            return JSONResponse(await _unless_gone(request, video.inspect(state, asked, deadline)))

        return await _answered(request, options.max_body, work)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card() for model in state.models.served.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return state.models[name].card()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> Response:
        reason = state.not_ready()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, file in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.get(path)(_file(PAGE / file))


def _file(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send


async def _answered(request: Request, limit: int, work: Callable[[AsyncExitStack], Awaitable[Response]]) -> Response:
    """Run `work`; an error becomes its response, once what the client still sends has been read."""
    async with AsyncExitStack() as held:
        try:
            return await work(held)
        except Exception as error:
            failed = _failed(request, error)
    await body.throw_away(request, 4 * limit)
    return failed


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(_CLIENT_GONE, "the client went away", "client_gone")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return response(error)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        text = {404: f"no such path: {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
        return response(
            ApiError(error.status_code, text.get(error.status_code, str(error.detail)), headers=dict(error.headers or {}))
        )

    @app.exception_handler(Exception)
    async def everything_else(request: Request, error: Exception) -> Response:
        return _failed(request, error)


def _failed(request: Request, error: Exception) -> Response:
    answer = api_error(error)
    if answer.status == 500:
        number = token_hex(6)
        log.error("%s %s failed (%s)", request.method, request.url.path, number, exc_info=error)
        answer = ApiError(500, f"the server failed on this request; its log says why under {number}", "internal_error")
    return response(answer)
