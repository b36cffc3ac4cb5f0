"""The server as a Ray Serve application: `build(args)`, replicas of the same ASGI app behind a thin front.

    serve run runtime.cluster.app:build bundle=/bundles/ov replicas=2

The front reads the request, passes it to a replica and returns the response. A response that is not an event stream leaves the
front only when it is complete. So if its replica dies before that, another replica gets the same request, and no accepted request
is lost. A stream that has begun cannot be restarted; it ends with an error event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.errors import UsageError, missing_package
from runtime.core.options import check_limits, nested, option, options_from_values
from runtime.engine import EngineOptions
from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions

try:
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from ray import serve
    from ray.exceptions import RayActorError
except ImportError as error:
    raise missing_package(str(error.name), "serving on Ray", "ray") from None

TRIES = 4
_PAUSE = 0.2  # seconds between two of them


@dataclass(frozen=True)
class ClusterOptions:
    """The arguments of the application and the options of its servers, except for host, port and drain, which are up to Ray."""

    bundle: str = option("", "one path, or several with commas, the same on every node")
    replicas: int = option(1, "loaded servers; the minimum if Ray scales", at_least=0)
    max_replicas: int = option(0, "if this is more than replicas, Ray scales between the two")
    target: float = option(4.0, "average number of requests per replica that Ray scales for")
    fronts: int = option(1, "processes that pass requests on")
    cpus: float = option(1.0, "that each replica reserves")
    gpus: float = option(0.0, "that each replica reserves")
    server: ServerOptions = nested(
        ServerOptions(host="0.0.0.0", engine=EngineOptions(threads=1)), without=("host", "port", "drain")
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.bundle:
            raise UsageError("no bundle; give bundle=/path/to/bundle, the same on every node")


class Replica:
    """One loaded server; `respond` runs a request through its ASGI app."""

    def __init__(self, options: ClusterOptions):
        from runtime.server.app import create_app
        from runtime.server.models import Models
        from runtime.server.state import State

        paths = [Path(path) for path in options.bundle.split(",")]
        self.state = State(Models.open(paths, options.server), options.server)
        self.app = create_app(self.state)

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[dict[str, Any], None]:
        """The ASGI messages of the response."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(16)
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not requests:
                await asyncio.Event().wait()  # the client stays connected until this generator is closed
            return requests.pop()

        async def run() -> None:
            try:
                await self.app(scope, receive, messages.put)  # type: ignore[arg-type]
            finally:
                await messages.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()

    def check_health(self) -> None:
        if reason := self.state.not_ready():
            raise RuntimeError(reason)


class Front:
    """Passes requests on; knows nothing about bundles."""

    def __init__(self, replica: Any, max_body: int):
        self.replica, self.max_body = replica.options(stream=True), max_body

    async def __call__(self, request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_body:
                return _response(ApiError(413, f"the request is larger than {self.max_body} bytes", "request_too_large"))
        scope = _plain(request.scope)
        for _ in range(TRIES):
            messages = self.replica.respond.remote(scope, bytes(body))
            try:
                start = await anext(messages)
                pairs = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in start["headers"])
                headers = {name: value for name, value in pairs if name != "content-length"}
                if headers.get("content-type", "").startswith("text/event-stream"):
                    return StreamingResponse(_events(messages), start["status"], headers)
                content = b"".join([message.get("body", b"") async for message in messages])
                return Response(content, start["status"], headers)
            except RayActorError:
                await asyncio.sleep(_PAUSE)
        return _response(ApiError(503, "no replica could finish this request", "replica_died", headers={"Retry-After": "5"}))


def build(args: dict[str, Any]) -> Any:
    """The application, for `serve run` and for the `import_path` of a RayService. UsageError for invalid arguments."""
    options = options_from_values(ClusterOptions, args)
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas > options.replicas:
        bounds = {"min_replicas": options.replicas, "max_replicas": options.max_replicas}
        scaling = {"autoscaling_config": bounds | {"target_ongoing_requests": options.target}}
    replica: Any = serve.deployment(
        Replica,
        name="replica",
        max_ongoing_requests=options.server.batch + options.server.queue,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=options.server.deadline,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        **scaling,
    )
    front: Any = serve.deployment(
        Front, name="front", num_replicas=options.fronts, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.1}
    )
    return front.bind(replica.bind(options), options.server.max_body)


async def _events(messages: Any) -> AsyncGenerator[bytes, None]:
    try:
        async for message in messages:
            if message.get("body"):
                yield message["body"]
    except RayActorError:
        error = ApiError(503, "the replica died while it was answering", "replica_died")
        yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _plain(scope: Any) -> dict[str, Any]:
    """The part of an ASGI scope that can be sent to another process, as if the application were at the root."""
    kept = ("type", "http_version", "method", "scheme", "query_string", "headers", "client", "server")
    plain = {name: scope[name] for name in kept if name in scope}
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    return plain | {"asgi": {"version": "3.0"}, "path": path, "raw_path": path.encode(), "root_path": ""}


def _response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)
