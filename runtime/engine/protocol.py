"""What a backend provides: Engine and State, the options that every backend takes, and the check of a run's inputs.

An engine runs one graph on NumPy arrays; inputs are checked by name, dtype and shape before anything is launched. Tensors that a
graph reads and writes back (the KV cache) are a State: they stay on the engine's device and are updated in place, so a decode
step writes only its own rows of a cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from runtime.bundle import BATCH, Bundle
from runtime.core.errors import EngineError
from runtime.core.options import check_limits, option


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; a str in the shape is a dimension known only at run time."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether a dimension is known only at run time."""
        return any(isinstance(size, str) for size in self.shape)

    def sizes(self, batch: int = 1) -> list[int]:
        """The shape in numbers, with `batch` for a batch axis (BATCH). EngineError where another dimension is dynamic."""
        sizes = [batch if size == BATCH else size for size in self.shape]
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < len(sizes):
            raise EngineError(f"{self.name} has shape {list(self.shape)}, expected fixed dimensions; export the bundle again")
        return numbers

    def zeros(self, batch: int = 1) -> np.ndarray:
        """Zeros of that shape. EngineError where they do not fit in memory."""
        sizes = self.sizes(batch)
        try:
            return np.zeros(sizes, self.dtype)
        except (MemoryError, ValueError):  # the latter for more than can be addressed
            raise EngineError(f"{self.name} has shape {sizes}, which does not fit in memory; export the bundle again") from None


@dataclass(frozen=True)
class EngineOptions:
    """How a graph is run; runtime/engine/open.py has the rule of device "auto"."""

    device: str = option(
        "auto",
        "default auto: the NVIDIA GPU where it can be used, else the CPU; gpu, gpu.1 and npu are OpenVINO's",
        metavar="auto|cpu|cuda|gpu|npu",
    )
    threads: int = option(0, "CPU threads of one run; 0 leaves it to the backend", at_least=0)
    bf16: bool = option(False, "compute an fp32 graph in bf16 (--backend openvino on a CPU): faster, less precise")

    def __post_init__(self) -> None:
        check_limits(self, EngineError)
        if not re.fullmatch(r"auto|cpu|cuda|gpu(\.\d+)?|npu", self.device):
            raise EngineError(f'device is "{self.device}", expected auto, cpu, cuda, or for openvino gpu, gpu.1, npu')

    def on(self, device: str) -> EngineOptions:
        """These options with "auto" replaced by `device`."""
        return replace(self, device=device) if self.device == "auto" else self


class State(Protocol):
    """Buffers that a graph reads and updates in place: those of one conversation, or of a batch of them."""

    def batch_slice(self, start: int, stop: int) -> State:
        """The same buffers, of which a run sees entries start … stop - 1 of the first axis as its batch."""


class Engine(Protocol):
    """One loaded graph.

    backend, device     where it runs, for reports
    inputs, outputs     all tensors of the graph, those of a state included
    """

    backend: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> Any:
        """A State of zeroed buffers for {input name: output name} pairs of equal dtype and shape; batch: size of a batch axis.

        EngineError where the graph has no batch axis and `batch` is not 1.
        """

    def run(self, feeds: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """Run once. `feeds` has every input that is not in `state` (a State of this engine); returns every output that is not."""

    def close(self) -> None:
        """Free the graph and its buffers."""


class Backend(Engine, Protocol):
    """What BACKENDS registers: an engine class that knows whether it can run here and loads graphs of a bundle.

    takes_bf16      whether it supports `EngineOptions.bf16`
    takes_batches   whether it runs DECODER_BATCH
    """

    takes_bf16: bool
    takes_batches: bool

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why this backend can't run on `device` here and what to do, as one line; None where it can."""

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> Backend:
        """Load the graph of that name. EngineError says what was wrong and what to run."""


def check_available(backend: type[Backend], device: str) -> None:
    """EngineError where `backend` can't run on `device` here."""
    reason = backend.unavailable(device)
    if reason:
        raise EngineError(f"backend {backend.backend} can't run here: {reason}")


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray], bound: frozenset[str] = frozenset()) -> None:
    """Refuse feeds whose names, dtypes or shapes differ from the graph's; `bound` names the inputs that a state provides."""
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
            # a named dimension has one size in all inputs
            fits &= got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            raise EngineError(f"{name} has shape {list(array.shape)}, the graph takes {list(spec.shape)}")
