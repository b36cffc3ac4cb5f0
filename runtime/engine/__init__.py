"""Engines: one protocol, one registry. A backend is one file here and one line in BACKENDS.

An engine runs one graph of a bundle on NumPy arrays; inputs are checked by name, dtype and shape before anything is
launched. Tensors that a graph reads and writes back (the KV cache) are a `State`: they stay where the engine computes,
and are updated in place, so a decode step writes its own rows of a cache and no others.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from runtime.bundle import BATCH, VISION, Bundle
from runtime.core.errors import EngineError, UserError, nearest
from runtime.engine import tuning

BACKENDS = {
    "onnx": "runtime.engine.onnx:OnnxEngine",
    "openvino": "runtime.engine.openvino:OpenVINOEngine",
    "tensorrt": "runtime.engine.tensorrt:TensorRTEngine",
    "tensorrt-rtx": "runtime.engine.tensorrt:TensorRTRTXEngine",
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; a str in the shape is a dimension known at run time."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]

    def sizes(self, batch: int = 1) -> list[int]:
        """The shape in numbers, `batch` for a first axis that the graph leaves open (BATCH). EngineError where another one is open."""
        sizes = [batch if size == BATCH else size for size in self.shape]
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < len(sizes):
            raise EngineError(f"{self.name} has shape {list(self.shape)}, expected numbers alone; export the bundle again")
        return numbers

    def zeros(self, batch: int = 1) -> np.ndarray:
        """Zeros of that shape. EngineError where there is no memory for it."""
        sizes = self.sizes(batch)
        try:
            return np.zeros(sizes, self.dtype)
        except (MemoryError, ValueError):  # the latter for more than can be addressed
            raise EngineError(f"{self.name} has shape {sizes}, more than memory holds; export the bundle again") from None


@dataclass(frozen=True)
class EngineOptions:
    """device: "auto" (see runtime/engine/place.py), "cpu", "cuda", or one of OpenVINO's: "gpu", "gpu.1", "npu"; threads: CPU threads of one run, 0 for the backend's
    own choice; bf16: let an fp32 graph be computed in bf16 (openvino on a CPU): faster, and no longer what the ONNX graph says."""

    device: str = "auto"
    threads: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda|gpu(\.\d+)?|npu", self.device):
            raise EngineError(f'device is "{self.device}", expected auto, cpu, cuda, or for openvino gpu, gpu.1, npu')
        if self.threads < 0:
            raise EngineError(f"threads is {self.threads}, expected 0 (the backend's choice) or more")

    def on(self, device: str) -> EngineOptions:
        """The same on `device` where none was chosen."""
        return replace(self, device=device) if self.device == "auto" else self


class State(Protocol):
    """Opaque device buffers that a graph updates in place; one per conversation."""


class Engine(Protocol):
    """One loaded graph, or two that follow one another.

    backend, device     where it runs, for reports
    inputs, outputs     all tensors of the graph, state included
    """

    backend: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def new_state(self, pairs: Mapping[str, str]) -> State:
        """Zeroed buffers for {input name: output name} pairs of equal dtype and shape."""

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """Run once; `feeds` holds every input that `state` does not, the result every output that it does not."""

    def close(self) -> None: ...


class Backend(Engine, Protocol):
    """What BACKENDS names: an engine class that says whether it can run here and loads a graph of a bundle.

    takes_bf16      whether `EngineOptions.bf16` means something to it
    """

    takes_bf16: bool

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why this backend can't run on `device` here, as one line with what to do; None where it can."""

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> Backend:
        """Load `graph` of `bundle` by its name; EngineError says what was wrong and what to run."""


def backend_class(name: str) -> Any:
    """The engine class registered under `name`; EngineError names the nearest for a misspelt one."""
    if name not in BACKENDS:
        raise EngineError(f'no backend "{name}"{nearest(name, BACKENDS)}')
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_engine(bundle: Bundle, graph: str, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Engine:
    """Load a graph on `backend`. "auto" takes the first of tensorrt, tensorrt-rtx, onnx that can run and has the engine; on a CPU
    what `python -m runtime tune` measured to be fastest here, else onnx. Where the device is "auto", `place` chooses it.

    VISION of a bundle that was split is its encoder and its compressor on that backend, as one engine (`runtime.engine.split`).
    """
    from runtime.engine.place import place

    options = place(bundle, backend, options).options
    if backend != "auto":
        engine = backend_class(backend)
        if options.bf16 and not engine.takes_bf16:
            raise EngineError(f"backend {backend} has no bf16 to switch on; pass --backend openvino, or leave --bf16 out")
        reason = engine.unavailable(options.device)
        if reason:
            raise EngineError(f"backend {backend} can't run here: {reason}")
        return _open(engine, bundle, graph, options)
    order, options = _order(bundle, graph, options)
    reasons = []
    for name in order:
        engine = backend_class(name)
        reason = engine.unavailable(options.device)
        if reason is None:
            try:
                return _open(engine, bundle, graph, options)
            except UserError as error:
                reason = str(error)
        reasons.append(f"{name}: {reason}")
    raise EngineError(f"no backend can run {graph} on {options.device}: " + "; ".join(reasons))


def _order(bundle: Bundle, graph: str, options: EngineOptions) -> tuple[list[str], EngineOptions]:
    """The backends that "auto" tries, and the options with the threads that were measured, where none were asked for."""
    if options.bf16 or options.device not in ("cpu", "cuda"):
        return ["openvino"], options
    if options.device == "cuda":
        return ["tensorrt", "tensorrt-rtx", "onnx"], options
    measured = tuning.chosen(bundle, graph)
    if measured is None or measured.backend not in BACKENDS or backend_class(measured.backend).unavailable("cpu"):
        return ["onnx"], options
    return list(dict.fromkeys([measured.backend, "onnx"])), replace(options, threads=options.threads or measured.threads)


def _open(engine: Any, bundle: Bundle, graph: str, options: EngineOptions) -> Engine:
    if graph == VISION and bundle.is_split:
        from runtime.engine.split import SplitVision

        opened: Engine = SplitVision.open_both(engine, bundle, options)
    else:
        opened = engine.open(bundle, graph, options)
    part, result = ("vision graph", "visual_tokens") if graph == VISION else ("decoder", "logits")
    if result not in (spec.name for spec in opened.outputs):
        raise EngineError(f"the {part} has no output {result}; export the bundle again")
    return opened


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray], bound: frozenset[str] = frozenset()) -> None:
    """Refuse feeds whose names, dtypes or shapes are not the graph's; `bound` are inputs that a state holds."""
    expected = {spec.name: spec for spec in specs if spec.name not in bound}
    if feeds.keys() != expected.keys():
        raise EngineError(f"inputs are {sorted(feeds)}, the graph takes {sorted(expected)}")
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        array = feeds[name]
        if array.dtype != spec.dtype:
            raise EngineError(f"{name} is {array.dtype}, the graph takes {spec.dtype}")
        fits = array.ndim == len(spec.shape)
        for got, want in zip(array.shape, spec.shape, strict=False):
            # a dimension of one name has one size in all inputs
            fits &= got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            raise EngineError(f"{name} has shape {list(array.shape)}, the graph takes {list(spec.shape)}")
