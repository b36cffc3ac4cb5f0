"""Which variant of the kernel a clip gets, and how many blocks of it; csrc/plan.h and csrc/st_gridpool.cu choose alike."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from plugins import cuda, nvrtc
from plugins.nvrtc import Compiled, Variant, resident_blocks, units, variant_for
from plugins.plan import make_plan
from plugins.spec import StGridPool
from runtime.errors import EngineError, UserError


@pytest.mark.parametrize(
    ("window", "hidden", "dtype", "chosen"),  # chosen: window, vectors, threads, groups
    [
        (2, 8, "float16", (2, 2, 32, 4)),
        (2, 8, "float32", (2, 2, 32, 4)),
        (2, 896, "bfloat16", (2, 2, 64, 2)),  # 112 vectors of 16 bytes, two a thread: 56 threads are two warps
        (2, 840, "float32", (2, 2, 128, 1)),
        (2, 1024, "float32", (2, 2, 128, 1)),
        (2, 1032, "float32", (2, 4, 96, 1)),  # 258 vectors: four a thread from 257 on
        (2, 2048, "float16", (2, 2, 128, 1)),
        (2, 3584, "bfloat16", (2, 4, 128, 1)),
        (2, 8192, "bfloat16", (2, 4, 256, 1)),
        (2, 8200, "bfloat16", (0, 1, 256, 1)),  # 288 threads would be needed: the generic way
        (3, 64, "float16", (3, 1, 32, 4)),
        (3, 264, "float32", (3, 1, 96, 1)),
        (3, 4096, "bfloat16", (3, 1, 512, 1)),
        (3, 4104, "bfloat16", (0, 1, 256, 1)),
        (1, 8, "float32", (0, 1, 32, 1)),
        (5, 896, "float16", (0, 1, 128, 1)),
        (4, 2048, "bfloat16", (0, 1, 256, 1)),
    ],
)
def test_the_variant_of_a_window_and_a_width(window: int, hidden: int, dtype: str, chosen: tuple[int, ...]):
    spec = StGridPool((), (), window=window)
    assert variant_for(spec, hidden, dtype) == Variant(dtype, True, -1, *chosen)
    spec = StGridPool((), (), window=window, order=3)
    assert variant_for(spec, hidden, dtype, 2) == Variant(dtype, False, 2, *chosen)


@pytest.mark.parametrize(
    ("changes", "target", "blocks"),
    [
        ({}, "sm_90", 6), ({"threads": 128, "groups": 1}, "sm_120", 6), ({"threads": 96, "groups": 1}, "compute_80", 6),
        ({"vectors": 4, "threads": 128, "groups": 1}, "sm_90", 5), ({"vectors": 4, "threads": 256, "groups": 1}, "sm_87", 2),
        ({"vectors": 4, "threads": 128, "groups": 1}, "sm_100", 3), ({"vectors": 4, "threads": 256, "groups": 1}, "sm_120", 1),
        ({"vectors": 4, "threads": 128, "groups": 1, "squares": False}, "sm_90", 3),
        ({"vectors": 4, "threads": 160, "groups": 1, "squares": False}, "sm_90", 1), ({"vectors": 2, "threads": 160}, "sm_90", 3),
        ({"depth": 0}, "sm_90", 1), ({"window": 3, "vectors": 1}, "sm_90", 1), ({"window": 0, "vectors": 1}, "sm_90", 1),
    ],
)  # fmt: skip
def test_the_blocks_that_must_fit_a_multiprocessor(changes: dict, target: str, blocks: int):
    values = {"dtype": "bfloat16", "squares": True, "depth": -1, "window": 2, "vectors": 2, "threads": 64, "groups": 2}
    assert resident_blocks(Variant(**values | changes), target) == blocks


@pytest.mark.parametrize(
    ("height", "width", "depth", "groups", "blocks"),
    # windows of 2x2; one level tiles four frames as 2x2, of half the height and width
    [(6, 10, -1, 1, 15), (7, 11, -1, 1, 24), (7, 11, 0, 1, 15), (7, 11, -1, 5, 5), (7, 11, -1, 4, 6), (7, 11, 0, 4, 4)],
)
def test_blocks_along_x_are_enough_for_windows_and_for_pooled_cells(height, width, depth, groups, blocks):
    plan = make_plan(StGridPool((4,), (1,)), 4, height, width)
    assert units(plan, Variant("float16", True, depth, 2, 2, 32, groups)) == blocks


def test_without_pooled_frames_the_windows_decide():
    assert units(make_plan(StGridPool((), ()), 4, 6, 10), Variant("float16", True, -1, 2, 2, 32, 2)) == 8


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
    assert nvrtc._nvrtc() is good
    _bindings(monkeypatch, nvrtc=SimpleNamespace(nvrtcVersion=_raises))
    with pytest.raises(
        UserError, match=r'compiling the plugin\'s kernel needs the package "nvidia-cuda-nvrtc".*st-gridpool\[plugin\]'
    ):
        nvrtc._nvrtc()
    _bindings(monkeypatch)
    with pytest.raises(UserError, match=r'compiling the plugin\'s kernel needs the package "cuda-bindings".*st-gridpool\[plugin\]'):
        nvrtc._nvrtc()


def test_what_is_missing_to_launch_is_named(monkeypatch):
    start = cuda._driver.__wrapped__
    asked = []
    good = SimpleNamespace(cuInit=lambda flags: asked.append(flags) or (0,))
    _bindings(monkeypatch, driver=good)
    assert start() is good and asked == [0]
    _bindings(monkeypatch, driver=SimpleNamespace(cuInit=lambda flags: (Status(100),)))
    with pytest.raises(EngineError, match=r"^the NVIDIA driver does not start \(NO_DEVICE\); the plugin's kernel needs a GPU"):
        start()
    _bindings(monkeypatch, driver=SimpleNamespace(cuInit=_raises))
    with pytest.raises(EngineError, match=r"^this machine has no NVIDIA driver; the plugin's kernel needs a GPU"):
        start()
    _bindings(monkeypatch)
    with pytest.raises(UserError, match=r'the plugin\'s kernel needs the package "cuda-bindings".*st-gridpool\[plugin\]'):
        start()


class Status(int):
    name = "NO_DEVICE"


@pytest.mark.parametrize(
    ("checked", "words"), [(nvrtc._checked, "NVRTC failed with"), (cuda._checked, "refused a call of the plugin:")]
)
def test_a_call_that_fails_is_named_and_one_that_does_not_gives_its_value(checked, words):
    assert (checked((0, 7)), checked((0, 7, 8)), checked((0,))) == (7, 7, None)
    with pytest.raises(EngineError, match=f"{words} NO_DEVICE"):
        checked((Status(100), 7))


def test_what_ptxas_says_is_read_from_its_last_line():
    said = "Used 7 registers, 16 bytes smem\nUsed 40 registers"
    assert nvrtc._number(r"Used (\d+) registers", said) == 40
    assert nvrtc._number(r"(\d+) bytes smem", said) == 16
    assert nvrtc._number(r"(\d+) bytes lmem", said) == 0


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
    ("target", "compiled"), [("sm_90", Compiled(b"a cubin", 40, 24, 4096)), ("compute_90", Compiled(b"ptx", 0, 0, 0))]
)
def test_a_variant_is_compiled_with_its_numbers_as_template_arguments(monkeypatch, target, compiled):
    compiler = Compiler(0, SAID)
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: compiler)
    compile_kernel = nvrtc.compile_kernel.__wrapped__
    assert compile_kernel(Variant("float16", True, -1, 2, 2, 64, 2), target) == compiled
    (source, name, count, texts, names), (number, options) = compiler.asked
    assert source.startswith(b'#include "st_gridpool.cuh"\nusing namespace gridpool;\n')
    assert b"__launch_bounds__(128, 6) st_gridpool(" in source
    assert b"  run<Half, 2, -1, 2, 2>(args, plan, x, scratch, out, first_task);\n" in source
    assert (name, count, len(texts)) == (b"st_gridpool.cu", len(names), len(names))
    assert b"st_gridpool.cuh" in names and b"struct Args" in texts[names.index(b"clip.cuh")]
    assert number == len(options) and options == [
        f"--gpu-architecture={target}".encode(), b"--std=c++17", b"--ptxas-options=-v", b"--device-as-default-execution-space",
    ]  # fmt: skip
    assert compiler.destroyed == ["program"]
    compile_kernel(Variant("bfloat16", False, 3, 3, 1, 96, 1), target, "int before;", "(%d, %d) <%s>")
    assert compiler.asked[2][0].endswith(b"namespace gridpool;\nint before;\n(96, 1) <BFloat16, 0, 3, 3, 1>")


def test_what_the_compiler_refuses_is_one_line_and_leaves_nothing_behind(monkeypatch):
    compiler = Compiler(6, b"error:\n  no such type\n\0")
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: compiler)
    with pytest.raises(EngineError, match=r"^NVRTC can't compile the kernel for sm_90: error: no such type$"):
        nvrtc.compile_kernel.__wrapped__(Variant("float32", True, -1, 2, 2, 64, 2), "sm_90")
    assert compiler.destroyed == ["program"]
