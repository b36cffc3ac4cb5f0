"""What is asked of TensorRT's two packages and made of what they say, on a stand-in for them."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from refusal import naming

from runtime.core.errors import EngineError, UserError
from runtime.engine import trt_api as trt


class Problem:
    """A parser's error at a node, or at none."""

    def __init__(self, why: str, node: str = "", operator: str = "", code: str = "UNSUPPORTED_NODE"):
        self.desc, self.node_name, self.node_operator = (lambda: why), (lambda: node), (lambda: operator)
        self.code = lambda: SimpleNamespace(name=code)


class Parser:
    def __init__(self, network: SimpleNamespace, logger: object):
        self.network, self.logger, self.read = network, logger, []
        self.errors = Library.errors
        self.num_errors = len(self.errors)

    def get_error(self, index: int) -> Problem:
        return self.errors[index]

    def parse_from_file(self, path: str) -> bool:
        self.read.append(path)
        return self.parse(b"", path, remember=False)

    def parse(self, content: bytes, path: str, remember: bool = True) -> bool:
        os.write(1, b"chatter\n")
        self.read += [(content, path)] if remember else []
        self.logger.log("ERROR", Library.says) if Library.says else None
        self.network.num_outputs = Library.outputs
        return Library.takes


class Library:
    """The names of the module that are read. errors, takes, outputs, says: what its parser does with any file."""

    __version__ = "1.7"
    errors: list[Problem]
    takes: bool
    outputs: int
    says: str
    starts: bool

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO"

    class IProgressMonitor:
        pass

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
    LayerType = SimpleNamespace(ATTENTION_INPUT="attention", PLUGIN_V3="plugin")
    OnnxParser = Parser

    class IAttentionInputLayer:
        pass

    class Builder:
        def __new__(cls, logger: object) -> object:
            return super().__new__(cls) if Library.starts else None

        def __init__(self, logger: object):
            self.flags: list[int] = []

        def create_network(self, flags: int) -> SimpleNamespace:
            self.flags.append(flags)
            return SimpleNamespace(num_outputs=0)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch):
    Library.errors, Library.takes, Library.outputs, Library.says, Library.starts = [], True, 1, "", True
    monkeypatch.setattr(trt, "load", lambda backend: Library)
    trt.logger.cache_clear()
    yield Library
    trt.logger.cache_clear()


class TestLoad:
    @pytest.mark.parametrize(
        ("backend", "module", "extra"), [("tensorrt", "tensorrt", "gpu"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
    )
    def test_a_package_is_looked_for_and_loaded_by_its_name(self, monkeypatch, backend, module, extra) -> None:
        monkeypatch.undo()
        there, asked = ModuleType(module), []
        monkeypatch.setitem(sys.modules, module, there)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked.append(name) or there)
        assert trt.installed(backend) is True and trt.load(backend) is there and asked == [module, module]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert trt.installed(backend) is False
        with pytest.raises(UserError, match=naming(f"backend {backend}", f'"{module}"', f"st-gridpool[{extra}]")):
            trt.load(backend)

    @pytest.mark.parametrize("error", [ImportError("no libnvinfer"), OSError("no libnvinfer")])
    def test_a_package_that_does_not_load_is_installed_again(self, monkeypatch, error) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

        def fail(name: str) -> None:
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        with pytest.raises(EngineError, match=naming("tensorrt_rtx", "no libnvinfer", "st-gridpool[rtx]")):
            trt.load("tensorrt-rtx")


class TestLogger:
    def test_the_last_error_is_kept_in_one_line_and_nothing_else(self) -> None:
        logger = trt.logger("tensorrt")
        assert trt.logger("tensorrt") is logger and isinstance(logger, Library.ILogger)
        assert trt.last_error("tensorrt") == "no reason given"
        for severity, message, kept in (
            ("WARNING", "slow", "no reason given"),
            ("INFO", "hello", "no reason given"),
            ("ERROR", "first\n  line", "first line"),
            ("ERROR", "could not open the log stream", "first line"),
            ("INTERNAL_ERROR", "second", "second"),
            ("WARNING", "slow", "second"),
        ):
            logger.log(severity, message)
            assert trt.last_error("tensorrt") == kept

    def test_warnings_are_passed_on_and_errors_only_to_who_looks_for_them(self, caplog) -> None:
        caplog.set_level(logging.DEBUG, trt.LOG.name)
        for severity in ("WARNING", "ERROR", "INTERNAL_ERROR", "INFO"):
            trt.logger("tensorrt").log(severity, f"{severity}\n x")
        assert [(record.levelno, record.message) for record in caplog.records] == [
            (logging.WARNING, "WARNING x"),
            (logging.DEBUG, "ERROR x"),
            (logging.DEBUG, "INTERNAL_ERROR x"),
            (logging.DEBUG, "INFO x"),
        ]


class TestParse:
    def test_a_file_becomes_a_strongly_typed_network(self, capfd) -> None:
        trt.logger("tensorrt").log("ERROR", "of the graph before")
        builder, network, parser = trt.parse("tensorrt", Path("a/m.onnx"))
        assert builder.flags == [8] and parser.network is network and parser.read == ["a/m.onnx"]  # 1 << STRONGLY_TYPED
        assert parser.logger is trt.logger("tensorrt") and trt.last_error("tensorrt") == "no reason given"
        assert capfd.readouterr() == ("", "chatter\n")

    @pytest.mark.parametrize("bare", [None, b"without bodies"])
    def test_a_plugin_is_preferred_only_where_it_is_asked_for(self, monkeypatch, bare) -> None:
        asked = []
        monkeypatch.setattr(trt, "_prefer_plugin", lambda *arguments: asked.append(arguments) or bare)
        assert trt.parse("tensorrt", Path("m.onnx"))[2].read == ["m.onnx"] and not asked
        parser = trt.parse("tensorrt", Path("m.onnx"), plugin=True)[2]
        assert parser.read == (["m.onnx"] if bare is None else [(bare, "m.onnx")])
        assert asked == [(Library, parser, Path("m.onnx"))]

    @pytest.mark.parametrize(("takes", "outputs", "says"), [(False, 1, "no\nmodel"), (True, 0, ""), (False, 0, "")])
    def test_what_is_not_taken_is_an_error(self, library, takes, outputs, says) -> None:
        library.takes, library.outputs, library.says = takes, outputs, says
        with pytest.raises(EngineError, match=rf"m\.onnx: {'no model' if says else 'no reason'}"):
            trt.parse("tensorrt", Path("m.onnx"))

    def test_a_library_that_does_not_start_is_an_error(self, library) -> None:
        library.starts = False
        with pytest.raises(EngineError, match="no reason"):
            trt.parse("tensorrt", Path("m.onnx"))

    @pytest.mark.parametrize(("count", "more"), [(1, []), (2, ["1 more"]), (3, ["2 more"])])
    def test_the_first_node_that_is_refused_is_named(self, library, count, more) -> None:
        library.takes, library.outputs = False, 0
        library.errors = [Problem(f"reason\n {number}", f"n{number}", "Det") for number in range(count)]
        with pytest.raises(EngineError, match=naming("tensorrt 1.7", "m.onnx", "node n0 (Det)", "reason 0", *more)):
            trt.parse("tensorrt", Path("m.onnx"))
        assert trt.parse_errors("tensorrt", Path("m.onnx")) == [f"node n{n} (Det): reason {n}" for n in range(count)]

    def test_an_error_is_one_line_with_its_node_where_it_has_one(self) -> None:
        errors = [Problem("a\n b"), Problem("c", "", "Det"), Problem("false", "n", "Det"), Problem("d", "n", "")]
        parser = SimpleNamespace(num_errors=4, get_error=errors.__getitem__)
        assert trt.parser_errors(parser) == ["a b", "node (unnamed) (Det): c", "node n (Det): unsupported node", "d"]
        assert trt.parser_errors(SimpleNamespace(num_errors=0, get_error=errors.__getitem__)) == []


@pytest.mark.parametrize("known", [True, False])
def test_attention_that_has_no_kernel_may_be_spelt_out(monkeypatch, known) -> None:
    class Layer:
        def __init__(self, kind: str):
            self.type, self.attention = kind, SimpleNamespace(decomposable=False)

    layers = [Layer(kind) for kind in ("attention", "convolution", "attention")]
    if not known:
        monkeypatch.delattr(Library, "IAttentionInputLayer")  # before 10.14
    network = SimpleNamespace(num_layers=3, get_layer=layers.__getitem__)
    assert trt.decompose_attention("tensorrt", network) == (2 if known else 0)
    assert [layer.attention.decomposable for layer in layers] == [known, False, known]
    assert [type(layer).__name__ for layer in layers][1] == "Layer"


class TestSerialize:
    def built(self, build, progress=lambda *step: None) -> object:
        """What comes of a builder that does `build(network, config)`."""
        return trt.serialize("tensorrt", SimpleNamespace(build_serialized_network=build), "network", SimpleNamespace(), progress)

    def test_the_engine_comes_from_another_thread_that_does_not_keep_the_process(self, capfd) -> None:
        seen, steps = [], []

        def build(network: str, config: SimpleNamespace) -> bytes:
            thread = threading.current_thread()
            seen.append((network, thread is threading.main_thread(), thread.daemon, thread.name))
            os.write(1, b"chatter")
            config.progress_monitor.phase_start("Build", None, 5)
            assert config.progress_monitor.step_complete("Build", 1) is True
            return b"an engine"

        trt.logger("tensorrt").log("ERROR", "of the build before")
        assert self.built(build, lambda *step: steps.append(step)) == b"an engine"
        assert seen == [("network", False, True, "tensorrt-build")] and steps == [("Build", 2, 5)]
        assert capfd.readouterr() == ("", "chatter") and trt.last_error("tensorrt") == "no reason given"

    def test_no_engine_is_an_error_with_the_library_s_reason(self) -> None:
        def build(network: str, config: SimpleNamespace) -> None:
            trt.logger("tensorrt").log("ERROR", "no\n room")

        with pytest.raises(EngineError, match=r"^tensorrt 1\.7 .*: no room$"):
            self.built(build)

    def test_an_interrupt_stops_the_build_at_its_next_step_and_waits_for_it(self, monkeypatch) -> None:
        interrupted, ended = threading.Event(), []

        class Event(threading.Event):
            """The thread that waits with a time limit, as this one does for the build, is interrupted."""

            def wait(self, timeout: float | None = None) -> bool:
                if timeout is not None and not interrupted.is_set():
                    interrupted.set()
                    raise KeyboardInterrupt
                return super().wait(timeout)

        def build(network: str, config: SimpleNamespace) -> None:
            interrupted.wait(10)
            config.progress_monitor.phase_start("Build", None, 1 << 30)
            while config.progress_monitor.step_complete("Build", 1):
                threading.Event().wait(0.001)
            ended.append(True)

        monkeypatch.setattr(trt, "threading", SimpleNamespace(Event=Event, Thread=threading.Thread))
        with pytest.raises(KeyboardInterrupt):
            self.built(build)
        assert ended == [True]


def test_stdout_comes_back_after_an_error_too(capfd, monkeypatch) -> None:
    """And what Python has buffered goes where it was printed."""
    monkeypatch.setattr(sys, "stdout", os.fdopen(1, "w", closefd=False))
    saved, closed, dup, close = [], [], os.dup, os.close
    monkeypatch.setattr(os, "dup", lambda descriptor: saved.append(dup(descriptor)) or saved[-1])
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close(descriptor))
    print("before")
    with pytest.raises(KeyError), trt.stdout_to_stderr():
        os.write(1, b"within")
        print("ours")
        raise KeyError
    os.write(1, b"after")
    assert capfd.readouterr() == ("before\nafter", "withinours\n")
    assert closed == saved and len(saved) == 1
