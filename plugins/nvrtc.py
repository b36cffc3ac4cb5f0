"""The kernel compiled at run time by NVRTC: which of its variants a clip needs, and its code for a GPU, or as PTX.

In: a spec, D, a dtype. Out: `Variant` (template arguments and block shape), then `Compiled` with the code and what ptxas says it
uses. No GPU and no CUDA toolkit is needed, only the packages nvidia-cuda-nvrtc and cuda-bindings.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.spec import StGridPool
from runtime.errors import EngineError, missing_package

KERNEL = "st_gridpool"
TARGETS = ("sm_87", "sm_90", "sm_100", "sm_110", "sm_120")  # Orin, Hopper, Blackwell, Thor, RTX PRO
SCRATCH = -1  # depth: pooled frames lie in scratch
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TYPES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}
_SOURCES = Path(__file__).parent / "csrc"
_MAX_THREADS = {2: 256, 3: 512}  # a unit's, by window

ENTRY = (
    'extern "C" __global__ void __launch_bounds__(%d, %d) st_gridpool(\n'
    "    Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, int first_task) {\n"
    "  run<%s>(args, plan, x, scratch, out, first_task);\n"
    "}\n"
)


@dataclass(frozen=True)
class Variant:
    """Template arguments, and the block: threads a window, windows a block.

    window is 2 or 3 where tokens stay in registers, else 0; vectors are 16 bytes, a thread holds that many of each token.
    """

    dtype: str
    squares: bool  # order 2
    depth: int
    window: int
    vectors: int
    threads: int
    groups: int


@dataclass(frozen=True)
class Compiled:
    """code: a cubin, or PTX; the rest is ptxas's account, zero for PTX. Bytes of spills are stores and loads together."""

    code: bytes
    registers: int
    spills: int
    shared: int


def variant_for(spec: StGridPool, hidden: int, dtype: str, depth: int = SCRATCH) -> Variant:
    """The variant for D and a dtype; the same choice is made by `choose` of csrc/plan.h."""
    vecs = hidden * BYTES[dtype] // 16
    vectors = 1 if spec.window != 2 else 4 if vecs > 256 else 2  # nine tokens of two vectors would not fit the registers
    threads = _round_up(-(-vecs // vectors), 32)
    if threads > _MAX_THREADS.get(spec.window, 0):
        return Variant(dtype, spec.order == 2, depth, window=0, vectors=1, threads=min(_round_up(vecs, 32), 256), groups=1)
    return Variant(dtype, spec.order == 2, depth, spec.window, vectors, threads, groups=max(1, 128 // threads))


def resident_blocks(variant: Variant, target: str) -> int:
    """How many blocks must fit a multiprocessor, where registers allow it without spilling; `resident_blocks` of csrc/st_gridpool.cu."""
    if variant.depth != SCRATCH or variant.window != 2:
        return 1
    newer = int(re.sub(r"\D", "", target)) >= 100
    resident = 768 if variant.vectors == 2 else 640 if variant.squares and not newer else 384
    block = 128 if variant.threads * variant.groups <= 128 else 256
    return max(1, resident // block)


def units(plan: Any, variant: Variant) -> int:
    """Blocks along x: enough for the windows of a frame, and for the cells of a pooled one."""
    _, rows, columns = plan.shape
    cells = [h * w for _, h, w, _ in plan.pools] if variant.depth == SCRATCH else []
    return -(-max([rows * columns, *cells]) // variant.groups)


@functools.cache
def compile_kernel(variant: Variant, target: str, prelude: str = "", entry: str = "") -> Compiled:
    """A cubin for "sm_…", PTX for "compute_…". `entry` replaces the kernel's own entry point, after `prelude`."""
    nvrtc = _nvrtc()
    arguments = f"{_TYPES[variant.dtype]}, {2 if variant.squares else 0}, {variant.depth}, {variant.window}, {variant.vectors}"
    bounds = (variant.threads * variant.groups, resident_blocks(variant, target))
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
