"""Start the server: load the bundles, listen, and on SIGTERM finish what was accepted.

`run(paths, options)` returns when the server has drained.
"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from runtime.engine import EngineOptions
from runtime.engine.place import place
from runtime.errors import UsageError, missing_package
from runtime.progress import say, step
from runtime.server.options import ServerOptions

_KEEP_ALIVE = 75  # seconds; clients give up an idle connection after 5 (httpx, openai), and who sends as it closes is reset


def run(paths: Sequence[Path], options: ServerOptions, backend: str = "auto", engine: EngineOptions = EngineOptions()) -> int:
    """Serve the bundles at `paths`. UserError where one can't be loaded or the port is taken."""
    try:
        import uvicorn

        from runtime.server.app import create_app
    except ImportError as error:
        raise missing_package(str(error.name), "serving", "serve") from None
    from runtime.server.models import Models
    from runtime.server.state import State

    listening = _listen(options)  # a taken port is said before gigabytes are loaded
    if options.api_key is None and not _loopback(options.host):
        say(f"warning: {options.host} can be reached from other machines and there is no --api-key: anybody there may ask")
    with step("loading"):
        state = State(Models.open(paths, options, backend, engine), options)
    notes = [place(model.bundle, backend, engine).note for model in state.models.served.values()]
    for note in filter(None, dict.fromkeys(notes)):
        say(note)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            state.admission.draining = True  # at once: connections that are open send no new work
            # uvicorn's own handler would raise the signal again at the end; a server that drained has ended well
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    config = uvicorn.Config(
        create_app(state),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(options.drain)),
        timeout_keep_alive=_KEEP_ALIVE,
    )
    host, port = listening.getsockname()[:2]
    say(f"serving {', '.join(state.models.served)} on http://{f'[{host}]' if ':' in host else host}:{port}")
    Server(config).run(sockets=[listening])
    say("drained")
    return 0


def _listen(options: ServerOptions) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't listen on {options.host}:{options.port}: {reason}; choose another --host or --port") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
