"""Which TensorRT builds engines here, and which GPUs they are built for.

    tensorrt        "sm87" (a GPU's architecture, that of the machine that builds) or "ampere-plus" (every GPU from Ampere on;
                    slower, and not on Jetson)
    tensorrt-rtx    "any" (every GPU from Ampere on) or architectures such as "sm89" or "sm86,sm120"

"current" stands for the architecture of this machine's GPU.
"""

from __future__ import annotations

from typing import Any

from runtime.core.errors import EngineError, UserError, nearest
from runtime.engine import cuda
from runtime.engine import trt_api as facade

DEFAULT_TARGET = {"tensorrt": "current", "tensorrt-rtx": "any"}
RTX_ANY = "any"
AMPERE_PLUS = "ampere-plus"


def backend_that_builds(needs_plugin: bool) -> tuple[str, str]:
    """`build --backend auto`: the backend that can build here, tensorrt before tensorrt-rtx, and the line that says why.

    EngineError where none can.
    """
    if needs_plugin:
        return "tensorrt", "backend tensorrt: only it takes a plugin"
    try:
        return "tensorrt", f"backend tensorrt: {version_that_builds('tensorrt')}, for {cuda.gpus()[0].name}"
    except UserError as error:
        why_not = str(error).partition(";")[0]
    try:
        facade.load("tensorrt-rtx")
    except UserError as error:
        raise EngineError(f"nothing here builds TensorRT engines: {why_not}; {error}") from None
    return "tensorrt-rtx", f"backend tensorrt-rtx, not tensorrt: {why_not}"


def version_that_builds(backend: str) -> str:
    """The installed version of the backend; EngineError where it can't build here."""
    if backend not in DEFAULT_TARGET:
        raise EngineError(f'no TensorRT backend "{backend}"{nearest(backend, DEFAULT_TARGET)}')
    version = facade.load(backend).__version__
    reason = cuda.no_gpu()
    if backend == "tensorrt" and reason:
        raise EngineError(f"tensorrt builds on the GPU that it builds for, and {reason}; --backend tensorrt-rtx builds without one")
    return version


def resolved_target(backend: str, target: str | None) -> str:
    """The target as it is recorded: what was asked for, with this machine's architecture for "current"."""
    target = target or DEFAULT_TARGET[backend]
    if target == "current":
        if cuda.no_gpu():
            raise EngineError(f'target "current" is the GPU of this machine, and {cuda.no_gpu()}')
        return cuda.gpus()[0].target
    if backend == "tensorrt":
        here = cuda.gpus()[0].target
        if target not in (AMPERE_PLUS, here):
            raise EngineError(f'tensorrt builds for the GPU it runs on ({here}) or "{AMPERE_PLUS}", not for "{target}"')
        return target
    members = facade.load("tensorrt-rtx").ComputeCapability.__members__
    known = [name.lower() for name in members if name.startswith("SM")]
    names = list(dict.fromkeys(target.split(",")))
    for name in names:
        if name not in known and target != RTX_ANY:
            raise EngineError(f'tensorrt-rtx has no target "{name}"; known: {", ".join([RTX_ANY, "current", *known])}')
    return ",".join(names)


def set_target(backend: str, config: Any, target: str) -> None:
    """Let a builder's config make an engine for `target`; the GPU of this machine is the default."""
    if backend == "tensorrt-rtx" and target != RTX_ANY:
        rtx, names = facade.load(backend), target.split(",")
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(rtx.ComputeCapability, name.upper()), index)
    elif target == AMPERE_PLUS:
        trt = facade.load(backend)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Whether an engine for a recorded target runs on a GPU of that compute capability."""
    if target in (RTX_ANY, AMPERE_PLUS):
        return capability >= (8, 0)
    return f"sm{capability[0]}{capability[1]}" in target.split(",")
