"""The facade of TensorRT and TensorRT-RTX: the only file that imports either package.

`load("tensorrt")` is the enterprise library (10.3 of JetPack 6.2 to 11.x), `load("tensorrt-rtx")` the one for GeForce and RTX PRO
cards, whose builder also runs on a machine without a GPU. Callers use what both have in common directly; the rest is here: the
parser's errors as one line, the library's output kept off stdout, attention that may be decomposed, a build that Ctrl-C ends.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from plugins.tensorrt import drop_body, prefer_plugin
from runtime.bundle.graph_file import read_graph
from runtime.core.errors import EngineError, missing_package

LOG = logging.getLogger("st-gridpool.tensorrt")

_PACKAGES = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}  # backend: module, pip extra


def installed(backend: str) -> bool:
    """Whether the package of `backend` is installed; nothing is imported."""
    return importlib.util.find_spec(_PACKAGES[backend][0]) is not None


def load(backend: str) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx`; UserError with the pip command where it is missing or broken."""
    module, extra = _PACKAGES[backend]
    if not installed(backend):
        raise missing_package(module, f"backend {backend}", extra)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # the bindings without their libraries, or for another CUDA
        raise EngineError(
            f'{module} is installed but does not load ({error}); pip install --force-reinstall "st-gridpool[{extra}]"'
        ) from error


@functools.cache
def logger(backend: str) -> Any:
    """The library's logger, which forwards warnings to Python's logging and keeps the last error.

    One per process and backend: TensorRT requires the same logger for as long as any of its objects lives.
    """
    trt: Any = load(backend)
    levels = {trt.ILogger.INTERNAL_ERROR: logging.ERROR, trt.ILogger.ERROR: logging.ERROR, trt.ILogger.WARNING: logging.WARNING}

    class Logger(trt.ILogger):
        last_error = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level >= logging.ERROR and "log stream" not in message:  # RTX logs that as an error at every start
                Logger.last_error = _one_line(message)
            LOG.log(logging.DEBUG if level == logging.ERROR else level, "%s", _one_line(message))  # errors are raised, not logged

    return Logger()


def last_error(backend: str) -> str:
    """The last error that the library logged; its calls only return None or False."""
    return type(logger(backend)).last_error or "no reason given"


def parse(backend: str, path: Path, plugin: bool = False) -> tuple[Any, Any, Any]:
    """Parse an ONNX file, external data included, into a strongly typed network: (builder, network, parser).

    plugin: use a registered plugin rather than the body of the function that it replaces.
    Keep all three for as long as one is used. EngineError names the first node that the parser refused.
    """
    parsed = _parse(backend, path, plugin)
    errors = parser_errors(parsed[2])
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise EngineError(f"{backend} {load(backend).__version__} can't parse {path}: {errors[0]}{more}")
    return parsed


def parser_errors(parser: Any) -> list[str]:
    """The parser's errors, one line each, which begins with the node where there is one."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"node {error.node_name() or '(unnamed)'} ({error.node_operator()}): " if error.node_operator() else ""
        why = _one_line(error.desc())  # only "false" where an importer ends at a bare assertion
        lines.append(where + (error.code().name.lower().replace("_", " ") if why == "false" else why))
    return lines


def parse_errors(backend: str, path: Path) -> list[str]:
    """The parser's errors for an ONNX file; empty where it accepts all of it."""
    return parser_errors(_parse(backend, path)[2])


def decompose_attention(backend: str, network: Any) -> int:
    """Let TensorRT decompose attention layers that it has no fused kernel for (those in fp32, for one); returns their number."""
    trt: Any = load(backend)
    if not hasattr(trt, "IAttentionInputLayer"):
        return 0  # before TensorRT 10.14 there is no such layer
    found = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:  # tensorrt>=10.14
            layer.__class__ = trt.IAttentionInputLayer  # tensorrt>=10.14  (get_layer returns the base class)
            layer.attention.decomposable = True  # tensorrt>=10.14
            found += 1
    return found


def serialize(backend: str, builder: Any, network: Any, config: Any, progress: Callable[[str, int, int], None]) -> Any:
    """Build an engine and return its bytes (a buffer); `progress(phase, done, steps)` is called as it goes.

    The builder works in a second thread, so that Ctrl-C reaches this one at once: the build is then stopped at its next step, and
    KeyboardInterrupt is raised.
    """
    type(logger(backend)).last_error = ""
    monitor = config.progress_monitor = _monitor(backend, progress)
    result: list[Any] = []
    failure: list[BaseException] = []
    allowed = threading.Event()  # set once this thread may be interrupted, which it may not within Thread.start
    ended = threading.Event()  # not Thread.join, which when interrupted considers the thread ended (before Python 3.13)

    def work() -> None:
        allowed.wait()
        try:
            result.append(builder.build_serialized_network(network, config))
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    with stdout_to_stderr():
        threading.Thread(target=work, name="tensorrt-build", daemon=True).start()
        try:
            allowed.set()
            while not ended.wait(0.1):
                pass
        except BaseException:
            monitor.stop()
            ended.wait()
            raise
    if failure:
        raise failure[0]
    if result[0] is None:
        raise EngineError(f"{backend} {load(backend).__version__} could not build the engine: {last_error(backend)}")
    return result[0]


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect what the C++ libraries print to stdout to stderr: stdout is for results."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _parse(backend: str, path: Path, plugin: bool = False) -> tuple[Any, Any, Any]:
    trt: Any = load(backend)
    type(logger(backend)).last_error = ""
    with stdout_to_stderr():
        builder = trt.Builder(logger(backend))
        if builder is None:
            raise EngineError(f"{backend} could not start: {last_error(backend)}")
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger(backend))
        bare = _prefer_plugin(trt, parser, path) if plugin else None
        parsed = parser.parse_from_file(str(path)) if bare is None else parser.parse(bare, str(path))
    if not parser.num_errors and not (parsed and network.num_outputs):
        raise EngineError(f"{backend} can't read {path}: {last_error(backend)}")
    return builder, network, parser


def _prefer_plugin(trt: Any, parser: Any, path: Path) -> bytes | None:
    """Let the parser use plugins rather than function bodies; where its release has no such choice, the model without the body.

    Its external data stay in their file. None where the model can be parsed as it is.
    """
    if prefer_plugin(trt, parser):
        return None
    model = read_graph(path)
    return model.SerializeToString() if drop_body(model) else None


def _monitor(backend: str, progress: Callable[[str, int, int], None]) -> Any:
    trt: Any = load(backend)

    class Monitor(trt.IProgressMonitor):
        """Reports the steps of the outermost phase and of its direct children, and ends the build after `stop`."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost = ""
            self._steps: dict[str, int] = {}
            self._stopped = False

        def stop(self) -> None:
            self._stopped = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost = phase_name
            if parent_phase in (None, self._outermost):
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                progress(phase_name, step + 1, self._steps[phase_name])
            return not self._stopped

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _one_line(message: str) -> str:
    return " ".join(message.split())
