"""Starting, listening and shutting down."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from refusal import naming

from runtime.core.errors import UsageError
from runtime.engine import EngineOptions
from runtime.server import serve
from runtime.server.models import Models
from runtime.server.options import ServerOptions, is_loopback
from runtime.server.state import State


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("127.0.0.1", None, False), ("localhost", None, False)],
)
def test_listening_for_others_without_a_key_warns(monkeypatch, capsys, tmp_path, host, key, warns):
    def refuse(*_):
        raise UsageError("nothing is loaded in this test")

    monkeypatch.setattr("runtime.server.models.Models.open", refuse)
    monkeypatch.setattr(serve, "_listen", lambda options: None)
    with pytest.raises(UsageError, match="nothing is loaded"):
        serve.run([tmp_path], ServerOptions(host=host, port=0, api_key=key))
    assert ("anybody there may ask" in capsys.readouterr().err) == warns


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_closes_the_models_and_logs_nothing_however_often_it_is_pressed(models, monkeypatch, caplog, times):
    state, closed = State(models, ServerOptions()), []
    monkeypatch.setattr(state, "close", lambda: closed.append(state.clips.close()))
    one = serve.server(state)
    one.config.host, one.config.port = "127.0.0.1", 0
    thread = threading.Thread(target=one.run)
    thread.start()
    while not one.started:
        time.sleep(0.01)
    for _ in range(times):
        one.handle_exit(signal.SIGINT, None)
    thread.join()
    assert len(closed) == 1
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.9", True), ("::1", True), ("::", False), ("10.0.0.1", False), ("example.com", False)]
)
def test_what_is_loopback(host, loopback):
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("address", "shown"), [(("127.0.0.1", 8000), "http://127.0.0.1:8000"), (("::1", 8001, 0, 0), "http://[::1]:8001")]
)
def test_it_says_what_is_served_where_and_on_which_device(monkeypatch, capsys, tmp_path, address, shown):
    opened, ran = [], []
    listening = SimpleNamespace(getsockname=lambda: address)
    served = {name: SimpleNamespace(bundle=name) for name in ("one", "two", "three")}
    asked = ("onnx", EngineOptions(threads=2))
    notes = {"one": "device cpu: no GPU", "two": "", "three": "device cpu: no GPU"}
    monkeypatch.setattr(serve, "_listen", lambda options: listening)
    monkeypatch.setattr(
        "runtime.server.models.Models.open", lambda *arguments: opened.append(arguments) or SimpleNamespace(served=served)
    )
    monkeypatch.setattr("runtime.server.state.State", lambda models, options: SimpleNamespace(models=models, options=options))
    monkeypatch.setattr(serve, "place", lambda bundle, *on: SimpleNamespace(note=notes[bundle] if on == asked else ""))
    monkeypatch.setattr(serve, "server", lambda state: SimpleNamespace(run=lambda sockets: ran.append((state.options, sockets))))
    options = ServerOptions(port=0, backend="onnx", engine=EngineOptions(threads=2))
    assert serve.run([tmp_path], options) == 0
    assert opened == [([tmp_path], options)] and ran == [(options, [listening])]
    lines = [line for line in capsys.readouterr().err.splitlines() if "loading" not in line]
    assert lines == ["device cpu: no GPU", f"serving one, two, three on {shown}", "drained"]


def test_a_port_that_is_taken_and_a_host_that_can_t_be_are_said_with_what_to_change():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=naming(f"127.0.0.1:{port}", "Address already in use", "--port")):
            serve._listen(ServerOptions(port=port))
    for host in ("a..b", "a" * 64):
        with pytest.raises(UsageError, match=rf"{host}:0: .*--host"):
            serve._listen(ServerOptions(host=host, port=0))


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_it_listens_where_it_is_told(host, family):
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with serve._listen(ServerOptions(host=host, port=0)) as listening:
        assert listening.family == family and listening.getsockname()[0] == host
        socket.create_connection(listening.getsockname()[:2]).close()


def test_as_many_connections_wait_to_be_accepted_as_the_server_takes_at_once(monkeypatch):
    opened = []
    monkeypatch.setattr(socket, "create_server", lambda address, **more: opened.append((address, more)))
    serve._listen(ServerOptions(host="127.0.0.1", port=8123))
    assert opened == [(("127.0.0.1", 8123), {"family": socket.AF_INET, "backlog": 128})]


def test_connections_are_bounded_and_the_drain_outlasts_what_is_given_up():
    config = serve.server(State(Models([]), ServerOptions(drain=12.4))).config
    assert (config.backlog, config.timeout_keep_alive, config.h11_max_incomplete_event_size) == (128, 75, 1 << 16)
    assert config.timeout_graceful_shutdown == 12 + 4 + 1  # requests, giving up, cutting off, and one to spare
    assert (config.ws, config.lifespan, config.log_level, config.server_header) == ("none", "on", "warning", False)
    assert serve.server(State(Models([]), ServerOptions()), lifespan=False).config.lifespan == "off"


class TestShutdown:
    """uvicorn's own part is left out; `later` is what was to happen how much later, `log` what did."""

    @pytest.fixture
    def one(self, monkeypatch):
        self.log, self.later = [], []

        state = State(Models([]), ServerOptions(drain=12.5))
        monkeypatch.setattr(state.admission, "end", lambda: self.log.append("ended"))
        server = serve.server(state)

        async def close():
            self.log.append("closed")

        server.lifespan = SimpleNamespace(shutdown=close)
        server.state = state
        yield server
        state.clips.close()

    def run(self, server, sockets=("socket",)) -> list:
        async def main():
            loop = asyncio.get_running_loop()
            call_later = loop.call_later

            def later(seconds, what):
                self.later.append((seconds, timer := call_later(seconds, what), what))
                return timer

            loop.call_later = later
            server.server_state.connections = [SimpleNamespace(transport=SimpleNamespace(abort=lambda: self.log.append("cut off")))]
            await server.shutdown(list(sockets))

        asyncio.run(main())
        return self.later

    def test_answers_are_given_up_after_the_drain_and_connections_are_cut_off_two_seconds_later(self, one, monkeypatch):
        async def shutdown(server, sockets):
            self.log.append(("uvicorn", sockets, one.state.admission.draining))

        monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
        later = self.run(one)
        assert [seconds for seconds, _, _ in later] == [12.5, 14.5] and all(timer.cancelled() for _, timer, _ in later)
        assert self.log == [("uvicorn", ["socket"], True)]
        for _, _, what in later:
            what()
        assert self.log[1:] == ["ended", "cut off"]

    def test_the_app_is_closed_where_uvicorn_leaves_it_open(self, one, monkeypatch):
        async def shutdown(server, sockets): ...

        monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
        one.force_exit = True
        self.run(one)
        assert self.log == ["closed"]

    @pytest.mark.parametrize(
        ("signals", "force"),
        [
            ([signal.SIGTERM], False),
            ([signal.SIGINT], False),
            ([signal.SIGINT, signal.SIGINT], True),
            ([signal.SIGTERM, signal.SIGINT], True),
            ([signal.SIGINT, signal.SIGTERM], False),
        ],
    )
    def test_a_second_ctrl_c_does_not_wait(self, one, signals, force):
        assert not one.should_exit
        for sig in signals:
            one.handle_exit(sig, None)
        assert (one.should_exit, one.force_exit, one.state.admission.draining) == (True, force, True)
