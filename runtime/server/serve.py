"""Start the server: load the bundles, listen, and on SIGTERM finish the accepted requests.

`run(paths, options)` returns when the server has drained.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.core.errors import UsageError, missing_package
from runtime.core.progress import log, step
from runtime.engine import place
from runtime.server.options import ServerOptions, is_loopback

if TYPE_CHECKING:
    import uvicorn

    from runtime.server.state import State

_BACKLOG = 128  # connections accepted at once: together with the open ones, they stay below the limit of open files
_MARGIN = 2  # seconds between ending unfinished answers and aborting connections
# seconds: longer than clients keep an idle connection (httpx, openai: 5), as one that sends just as the server closes gets a reset
_KEEP_ALIVE = 75


def run(paths: Sequence[Path], options: ServerOptions) -> int:
    """Serve the bundles at `paths`. UserError if one can't be loaded or the port is in use."""
    try:
        import uvicorn  # noqa: F401

        from runtime.server.models import Models
        from runtime.server.state import State
    except ImportError as error:
        raise missing_package(str(error.name), "serving", "serve") from None

    listening = _listen(options)  # first, so that a port in use is reported before gigabytes are loaded
    if options.api_key is None and not is_loopback(options.host):
        log(f"warning: {options.host} can be reached from other machines, and without --api-key anybody there may ask")
    with step("loading"):
        state = State(Models.open(paths, options), options)
    notes = [place(model.bundle, options.backend, options.engine).note for model in state.models.served.values()]
    for note in filter(None, dict.fromkeys(notes)):
        log(note)

    host, port = listening.getsockname()[:2]
    log(f"serving {', '.join(state.models.served)} on http://{f'[{host}]' if ':' in host else host}:{port}")
    server(state).run(sockets=[listening])
    log("drained")
    return 0


def server(state: State, lifespan: bool = True) -> uvicorn.Server:
    """A uvicorn server over loaded models, with bounded connections and a drain that ends in time and without a traceback."""
    import uvicorn

    from runtime.server.app import create_app
    from runtime.server.protocol import HEADER_BYTES, bounded_protocol

    options, admission = state.options, state.admission

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            admission.draining = True  # at once, so that open connections bring no new requests
            # uvicorn's own handler would raise the signal again at the end, but a server that drained exits with 0
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            loop = asyncio.get_running_loop()
            admission.drain()
            timers = [loop.call_later(options.drain, admission.end), loop.call_later(options.drain + _MARGIN, self._cut_off)]
            await super().shutdown(sockets)
            for timer in timers:
                timer.cancel()
            if self.force_exit:  # uvicorn then leaves the app open, which would log a traceback when the loop ends
                await self.lifespan.shutdown()

        def _cut_off(self) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    return Server(
        uvicorn.Config(
            create_app(state),
            http=bounded_protocol(options.header_seconds),
            ws="none",
            h11_max_incomplete_event_size=HEADER_BYTES,
            backlog=_BACKLOG,
            lifespan="on" if lifespan else "off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=round(options.drain + 2 * _MARGIN) + 1,
            timeout_keep_alive=_KEEP_ALIVE,
        )
    )


def _listen(options: ServerOptions) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # the second: a name that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't listen on {options.host}:{options.port}: {reason}; choose another --host or --port") from None
