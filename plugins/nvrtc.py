"""The kernel compiled at run time by NVRTC: which of its variants a clip needs, and its code for a GPU, or as PTX.

In: a spec, D, a dtype. Out: `Variant` (template arguments and block shape), then `Compiled` with the code and what ptxas says it
uses. No GPU and no CUDA toolkit is needed, only the packages nvidia-cuda-nvrtc and cuda-bindings.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.errors import EngineError, missing_package
from plugins.op import StGridPool
from plugins.plan import POOL, WINDOWS, Plan

KERNEL = "st_gridpool"
TARGETS = ("sm_87", "sm_90", "sm_100", "sm_110", "sm_120")  # Orin, Hopper, Blackwell, Thor, RTX PRO
SCRATCH = -1  # depth: pooled frames lie in scratch
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TYPES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}
_SOURCES = Path(__file__).parent / "csrc"
LEAST_SHARED = 99 << 10  # bytes that a block can have on every GPU from compute capability 8.0 on
DECLARED_SHARED = 1024  # and a little more, of what a kernel that walks declares itself: `kDeclaredShared` of csrc/plan.h
BLOCKS = (32, 64, 96, 128, 224, 256, 384, 512)  # threads that walk; `kBlocks` of csrc/plan.h
MOST_VECTORS = 1024  # of a token that is walked: `kMostVectors` of csrc/clip.cuh
STEPS, LATE_STEPS = 7, 3  # of a walk: `kSteps`, `kLateSteps` of csrc/walk.cuh
_MAX_THREADS = {2: 256, 3: 512}  # a window's that is held in registers, by its side

ENTRY = (
    'extern "C" __global__ void __launch_bounds__(%d, %d) st_gridpool(\n'
    "    Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, Launch launch) {\n"
    "  run%s(args, plan, x, scratch, out, launch);\n"
    "}\n"
)


@dataclass(frozen=True)
class Variant:
    """Template arguments, and the block: threads a window, windows a block.

    window is 2 or 3 where tokens stay in registers, else 0; vectors are 16 bytes, a thread holds that many of each token. stages: of
    a walk (csrc/walk.cuh), whose steps lie in shared memory; 0 for the other ways.
    """

    dtype: str
    squares: bool  # order 2
    depth: int
    window: int
    vectors: int
    threads: int
    groups: int
    stages: int = 0

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a launch has to ask for."""
        return self.stages * 6 * self.vectors * self.threads * 16


@dataclass(frozen=True)
class Compiled:
    """code: a cubin, or PTX; the rest is ptxas's account, zero for PTX. Bytes of spills are stores and loads together."""

    code: bytes
    registers: int
    spills: int
    shared: int


def variant_for(spec: StGridPool, hidden: int, dtype: str, depth: int = SCRATCH, shared: int = LEAST_SHARED) -> Variant:
    """The variant for D and a dtype; the same choice is made by `choose` of csrc/plan.h.

    shared: bytes of shared memory that the GPU gives a block.
    """
    vecs, squares = hidden * BYTES[dtype] // 16, spec.order == 2
    if depth == SCRATCH and spec.window == 2 and vecs <= MOST_VECTORS:
        vectors = 2 if vecs > 32 else 1
        threads = next(block for block in BLOCKS if block >= -(-vecs // vectors))
        twice = Variant(dtype, squares, depth, 2, vectors, threads, 1, stages=2)
        return twice if twice.shared_bytes + DECLARED_SHARED <= shared else replace(twice, stages=1)
    vectors = 1 if spec.window != 2 else 4 if vecs > 256 else 2  # nine tokens of two vectors would not fit the registers
    threads = _round_up(-(-vecs // vectors), 32)
    if threads > _MAX_THREADS.get(spec.window, 0) or (depth == SCRATCH and spec.window == 2):
        return Variant(dtype, squares, depth, window=0, vectors=1, threads=min(_round_up(vecs, 32), 256), groups=1)
    return Variant(dtype, squares, depth, spec.window, vectors, threads, groups=max(1, 128 // threads))


def resident_blocks(variant: Variant) -> int:
    """How many blocks must fit a multiprocessor, which bounds a thread's registers; `resident_blocks` of csrc/kernels.cuh."""
    return max(1, 65536 // (112 * variant.threads)) if variant.stages else 1


def launches(plan: Plan, variant: Variant) -> tuple[tuple[int, ...], ...]:
    """`Launch` of csrc/clip.cuh for each of the plan's launches, and its blocks."""
    first, result = 0, []
    for tasks in plan.by_launch():
        units = [1, 1]
        for task in tasks:
            late = task[2] >= plan.frames
            units[late] = max(units[late], -(-_units(plan, variant, task) // variant.groups))
        originals = sum(version < plan.frames for _, _, version, _ in tasks)
        blocks = originals * units[0] + (len(tasks) - originals) * units[1]
        result.append((first, originals, *units, blocks))
        first += len(tasks)
    return tuple(result)


def _units(plan: Plan, variant: Variant, task: tuple[int, ...]) -> int:
    """Walks, or windows and cells, of a task."""
    kind, index, version, pool = task
    _, rows, columns = plan.shape
    _, height, width, _ = (0, 0, 0, 0) if kind == WINDOWS else plan.pools[index if kind == POOL else pool]
    half = (-(-plan.ints[2] // 2), -(-plan.ints[3] // 2))
    if not variant.stages or (kind == POOL and ((height, width) != half or plan.ints[6:8] != (2, 0))):
        return (0 if kind == POOL else rows * columns) + height * width
    rows, columns = (rows, columns) if kind == WINDOWS else half
    return rows * -(-columns // (STEPS if version < plan.frames else LATE_STEPS))


@functools.cache
def compile_kernel(variant: Variant, target: str, prelude: str = "", entry: str = "") -> Compiled:
    """A cubin for "sm_…", PTX for "compute_…". `entry` replaces the kernel's own entry point, after `prelude`."""
    nvrtc = _nvrtc()
    kind = f"{_TYPES[variant.dtype]}, {2 if variant.squares else 0}"
    if variant.stages:
        arguments = f"_walks<{kind}, {variant.vectors}, {variant.stages}, {variant.threads}>"
    else:
        arguments = f"<{kind}, {variant.depth}, {variant.window}, {variant.vectors}>"
    bounds = (variant.threads * variant.groups, resident_blocks(variant))
    source = f'#include "st_gridpool.cuh"\nusing namespace gridpool;\n{prelude}\n{(entry or ENTRY) % (*bounds, arguments)}'
    headers = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.cuh"))}
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            source.encode(), b"st_gridpool.cu", len(headers), list(headers.values()), [n.encode() for n in headers]
        )
    )
    try:
        options = [
            f"--gpu-architecture={target}".encode(),
            b"--std=c++17",
            b"--ptxas-options=-v",
            b"--device-as-default-execution-space",
        ]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        text = log.decode(errors="replace").strip("\0\n")
        if int(status):
            raise EngineError(f"NVRTC can't compile the kernel for {target}: {' '.join(text.split())[:500]}")
        if target.startswith("compute_"):
            code = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program)))
            _checked(nvrtc.nvrtcGetPTX(program, code))
            return Compiled(bytes(code), 0, 0, 0)
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", text)))
    return Compiled(bytes(code), _number(r"Used (\d+) registers", text), spills, _number(r"(\d+) bytes smem", text))


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise missing_package("cuda-bindings", "compiling the plugin's kernel", "plugin") from error
    try:
        _checked(nvrtc.nvrtcVersion()[:2])
    except RuntimeError as error:  # the bindings are there, the library that they load is not
        raise missing_package("nvidia-cuda-nvrtc", "compiling the plugin's kernel", "plugin") from error
    return nvrtc


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise EngineError(f"NVRTC failed with {status.name}; pip install --force-reinstall nvidia-cuda-nvrtc cuda-bindings")
    return values[0] if values else None


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
