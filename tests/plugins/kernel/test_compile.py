"""The kernel's source for a variant, what NVRTC is asked, and what its log says."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from plugins.errors import EngineError, UserError
from plugins.kernel import compile
from plugins.kernel.compile import Compiled
from plugins.kernel.variants import Variant


def _bindings(monkeypatch, **modules) -> None:
    package = ModuleType("cuda.bindings")
    vars(package).update(modules)
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    for name in ("driver", "nvrtc"):
        monkeypatch.delitem(sys.modules, f"cuda.bindings.{name}", raising=False)


def _raises(*arguments):
    raise RuntimeError("Failed to dlopen")


def test_what_is_missing_to_compile_is_named(monkeypatch):
    good = SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    _bindings(monkeypatch, nvrtc=good)
    assert compile._nvrtc() is good
    _bindings(monkeypatch, nvrtc=SimpleNamespace(nvrtcVersion=_raises))
    with pytest.raises(UserError, match=r'"nvidia-cuda-nvrtc".*st-gridpool\[plugin\]'):
        compile._nvrtc()
    _bindings(monkeypatch)
    with pytest.raises(UserError, match=r'"cuda-bindings".*st-gridpool\[plugin\]'):
        compile._nvrtc()


class Status(int):
    name = "NO_DEVICE"


def test_a_call_that_fails_is_named_and_one_that_does_not_gives_its_value():
    assert (compile._checked((0, 7)), compile._checked((0, 7, 8)), compile._checked((0,))) == (7, 7, None)
    with pytest.raises(EngineError, match="NO_DEVICE"):
        compile._checked((Status(100), 7))


def test_what_ptxas_says_is_read_from_its_last_line():
    message = "Used 7 registers, 16 bytes smem\nUsed 40 registers"
    assert compile._number(r"Used (\d+) registers", message) == 40
    assert compile._number(r"(\d+) bytes smem", message) == 16
    assert compile._number(r"(\d+) bytes lmem", message) == 0


class Compiler:
    """Stands in for cuda.bindings.nvrtc; `status` is what a compilation ends with, `log` what it says."""

    def __init__(self, status: int, log: bytes):
        self.status, self.log, self.asked, self.destroyed = status, log, [], []

    def nvrtcCreateProgram(self, *asked):
        self.asked.append(asked)
        return 0, "program"

    def nvrtcCompileProgram(self, program, count, options):
        self.asked.append((count, options))
        return (self.status,)

    def nvrtcDestroyProgram(self, program):
        self.destroyed.append(program)

    def __getattr__(self, name):
        content = {"ProgramLog": self.log, "PTX": b"ptx", "CUBIN": b"a cubin"}[name.removeprefix("nvrtcGet").removesuffix("Size")]

        def get(program, buffer=None):
            if buffer is None:
                return 0, len(content)
            buffer[:] = content
            return (0,)

        return get


SAID = b"ptxas info: 16 bytes spill stores, 8 bytes spill loads\nUsed 40 registers, 4096 bytes smem\n\0"


@pytest.mark.parametrize(
    ("target", "said", "compiled"),
    [("sm_90", SAID, Compiled(b"a cubin", 40, 24, 4096)), ("compute_90", b"\0", Compiled(b"ptx", 0, 0, 0))],
)
def test_a_variant_is_compiled_with_its_numbers_as_template_arguments(monkeypatch, target, said, compiled):
    compiler = Compiler(0, said)
    monkeypatch.setattr(compile, "_nvrtc", lambda: compiler)
    compile_kernel = compile.compile_kernel.__wrapped__
    assert compile_kernel(Variant("float16", True, -1, 2, 2, 64, 1, 2), target) == compiled
    (source, name, count, texts, names), (number, options) = compiler.asked
    assert source.startswith(b'#include "st_gridpool.cuh"\nusing namespace gridpool;\n')
    assert b"__launch_bounds__(64, 9) st_gridpool(" in source
    assert b"  run_walks<Half, 2, 2, 2, 64>(args, plan, x, scratch, out, launch);\n" in source
    assert (name, count, len(texts)) == (b"st_gridpool.cu", len(names), len(names))
    assert b"st_gridpool.cuh" in names and b"struct Args" in texts[names.index(b"clip.cuh")]
    assert number == len(options) and options == [
        f"--gpu-architecture={target}".encode(), b"--std=c++17", b"--ptxas-options=-v", b"--device-as-default-execution-space",
    ]  # fmt: skip
    assert compiler.destroyed == ["program"]
    compile_kernel(Variant("bfloat16", False, 3, 3, 1, 96, 1), target, "int before;", "(%d, %d) %s")
    assert compiler.asked[2][0].endswith(b"namespace gridpool;\nint before;\n(96, 1) <BFloat16, 0, 3, 3, 1>")


def test_what_the_compiler_refuses_is_one_line_and_leaves_nothing_behind(monkeypatch):
    compiler = Compiler(6, b"error:\n  no such type\n\0")
    monkeypatch.setattr(compile, "_nvrtc", lambda: compiler)
    with pytest.raises(EngineError, match=r"sm_90: error: no such type$"):
        compile.compile_kernel.__wrapped__(Variant("float32", True, -1, 2, 2, 64, 2), "sm_90")
    assert compiler.destroyed == ["program"]
