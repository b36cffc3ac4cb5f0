"""The kernel compiled by NVRTC at run time, for a GPU or as PTX.

In: a `Variant`. Out: `Compiled`, the code and what ptxas reports that it uses. This needs no GPU and no CUDA toolkit, only the packages
nvidia-cuda-nvrtc and cuda-bindings.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.errors import EngineError, missing_package
from plugins.kernel.variants import Variant, resident_blocks

KERNEL = "st_gridpool"
TARGETS = ("sm_87", "sm_90", "sm_100", "sm_110", "sm_120")  # Orin, Hopper, Blackwell, Thor, RTX PRO
_TYPES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}
_SOURCES = Path(__file__).parents[1] / "csrc"

ENTRY = (
    'extern "C" __global__ void __launch_bounds__(%d, %d) st_gridpool(\n'
    "    Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, Launch launch) {\n"
    "  run%s(args, plan, x, scratch, out, launch);\n"
    "}\n"
)


@dataclass(frozen=True)
class Compiled:
    """code: a cubin, or PTX; the rest is what ptxas reports, zero for PTX. spills: bytes of stores and loads together."""

    code: bytes
    registers: int
    spills: int
    shared: int


@functools.cache
def compile_kernel(variant: Variant, target: str, prelude: str = "", entry: str = "") -> Compiled:
    """A cubin for "sm_…", PTX for "compute_…". `entry`, with `prelude` before it, replaces the kernel's own entry point."""
    nvrtc = _nvrtc()
    kind = f"{_TYPES[variant.dtype]}, {2 if variant.squares else 0}"
    if variant.stages:
        arguments = f"_walks<{kind}, {variant.vectors}, {variant.stages}, {variant.threads}>"
    else:
        arguments = f"<{kind}, {variant.depth}, {variant.window}, {variant.vectors}>"
    bounds = (variant.threads * variant.groups, resident_blocks(variant))
    source = f'#include "st_gridpool.cuh"\nusing namespace gridpool;\n{prelude}\n{(entry or ENTRY) % (*bounds, arguments)}'
    headers = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.cuh"))}
    names = [name.encode() for name in headers]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"st_gridpool.cu", len(names), list(headers.values()), names))
    try:
        options = [f"--gpu-architecture={target}", "--std=c++17", "--ptxas-options=-v", "--device-as-default-execution-space"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        text = _fetched(nvrtc, "ProgramLog", program).decode(errors="replace").strip("\0\n")
        if int(status):
            raise EngineError(f"NVRTC can't compile the kernel for {target}: {' '.join(text.split())[:500]}")
        code = _fetched(nvrtc, "PTX" if target.startswith("compute_") else "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", text)))
    return Compiled(code, _number(r"Used (\d+) registers", text), spills, _number(r"(\d+) bytes smem", text))


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


def _fetched(nvrtc: Any, what: str, program: Any) -> bytes:
    content = bytearray(_checked(getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
    _checked(getattr(nvrtc, f"nvrtcGet{what}")(program, content))
    return bytes(content)


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise EngineError(f"NVRTC failed with {status.name}; pip install --force-reinstall nvidia-cuda-nvrtc cuda-bindings")
    return values[0] if values else None


def _number(pattern: str, text: str) -> int:
    return int((re.findall(pattern, text) or [0])[-1])
