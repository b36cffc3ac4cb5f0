"""Which variant of the kernel a clip gets, and how many blocks of it; csrc/plan.h and csrc/kernels.cuh choose alike."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from plugins import nvrtc
from plugins.nvrtc import Compiled, Variant, launches, resident_blocks, variant_for
from plugins.op import StGridPool
from plugins.plan import make_plan
from runtime.core.errors import EngineError, UserError


@pytest.mark.parametrize(
    ("hidden", "dtype", "shared", "chosen"),  # shared: KiB that a block may have; chosen: vectors, threads, stages
    [
        (8, "float16", 99, (1, 32, 2)),
        (256, "bfloat16", 99, (1, 32, 2)),  # 32 vectors of 16 bytes
        (264, "bfloat16", 99, (2, 32, 2)),
        (896, "bfloat16", 99, (2, 64, 2)),  # 112 vectors, two a thread: 56 threads
        (840, "float32", 99, (2, 128, 2)),
        (3584, "bfloat16", 99, (2, 224, 2)),  # 84 KiB
        (4096, "bfloat16", 99, (2, 256, 2)),
        (5120, "bfloat16", 227, (2, 384, 2)),
        (5120, "bfloat16", 99, (2, 384, 1)),
        (8192, "bfloat16", 227, (2, 512, 2)),
        (8192, "bfloat16", 191, (2, 512, 1)),  # two stages of 96 KiB
        (4096, "float32", 192, (2, 512, 1)),  # the kernel declares some itself
        (4096, "float32", 193, (2, 512, 2)),
    ],
)
def test_windows_of_two_are_walked_two_vectors_a_thread(hidden: int, dtype: str, shared: int, chosen: tuple[int, ...]):
    vectors, threads, stages = chosen
    expected = Variant(dtype, True, -1, 2, vectors, threads, 1, stages)
    assert variant_for(StGridPool(), hidden, dtype, shared=shared << 10) == expected
    assert expected.shared_bytes == stages * 6 * vectors * threads * 16 <= shared << 10


@pytest.mark.parametrize(
    ("window", "hidden", "dtype", "depth", "chosen"),  # chosen: window, vectors, threads, groups
    [
        (2, 8200, "bfloat16", -1, (0, 1, 256, 1)),  # 1,025 vectors: the generic way
        (2, 8, "float16", 2, (2, 2, 32, 4)),
        (2, 896, "bfloat16", 2, (2, 2, 64, 2)),
        (2, 1024, "float32", 2, (2, 2, 128, 1)),
        (2, 1032, "float32", 2, (2, 4, 96, 1)),  # 258 vectors: four a thread from 257 on
        (2, 3584, "bfloat16", 2, (2, 4, 128, 1)),
        (2, 8192, "bfloat16", 2, (2, 4, 256, 1)),
        (2, 8200, "bfloat16", 2, (0, 1, 256, 1)),  # 288 threads would be needed
        (3, 64, "float16", -1, (3, 1, 32, 4)),
        (3, 264, "float32", 2, (3, 1, 96, 1)),
        (3, 4096, "bfloat16", -1, (3, 1, 512, 1)),
        (3, 4104, "bfloat16", -1, (0, 1, 256, 1)),
        (1, 8, "float32", -1, (0, 1, 32, 1)),
        (5, 896, "float16", -1, (0, 1, 128, 1)),
        (4, 2048, "bfloat16", 2, (0, 1, 256, 1)),
    ],
)
def test_other_windows_and_summaries_on_the_fly_are_held_in_registers_or_go_the_generic_way(window, hidden, dtype, depth, chosen):
    for order in (2, 3):
        variant = variant_for(StGridPool((), (), window=window, order=order), hidden, dtype, depth)
        assert variant == Variant(dtype, order == 2, depth, *chosen)
        assert variant.shared_bytes == 0


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [({}, 9), ({"threads": 224}, 2), ({"threads": 32}, 18), ({"threads": 384}, 1), ({"threads": 512}, 1), ({"stages": 0}, 1)],
)
def test_the_blocks_that_must_fit_a_multiprocessor(changes: dict, blocks: int):
    """112 registers a thread of 65,536."""
    values = {"dtype": "bfloat16", "squares": True, "depth": -1, "window": 2, "vectors": 2, "threads": 64, "groups": 1, "stages": 2}
    assert resident_blocks(Variant(**values | changes)) == blocks


WALK = Variant("float16", True, -1, 2, 2, 32, 1, 2)


@pytest.mark.parametrize(
    ("height", "width", "units"),
    # one level tiles four frames as 2x2, of half the height and width; walks of 7 windows, in the summary of 3
    [
        (6, 10, (3, 6)),  # 3 rows of 5 windows and cells: a walk a row; the summary's windows: 2 walks a row
        (7, 11, (4, 6)),  # 4 rows of 6 cells; the summary has 3 rows of 5 windows
        (4, 32, (6, 12)),  # 2 rows of 16: 3 walks a row; 6 in the summary
    ],
)
def test_blocks_of_each_launch_of_walks(height, width, units):
    walks, late = units
    assert launches(make_plan(StGridPool((4,), (1,)), 4, height, width), WALK) == (
        (0, 4, walks, 1, 4 * walks),
        (4, 0, 1, late, late),
    )


@pytest.mark.parametrize(("groups", "blocks"), [(1, (40, 15)), (4, (10, 4)), (7, (6, 3))])
def test_blocks_of_each_launch_of_windows_and_cells_one_by_one(groups, blocks):
    """3x3 windows of 9x15 tokens are 15; four frames are pooled to 5x8, and three of them shown."""
    cells, windows = blocks
    plan = make_plan(StGridPool((4,), (1,), window=3), 4, 9, 15)
    assert plan.launches == (7, 1)
    expected = ((0, 7, cells, 1, 7 * cells), (7, 0, 1, windows, windows))
    assert launches(plan, Variant("float16", True, -1, 3, 1, 32, groups)) == expected


def test_a_pooled_frame_of_another_size_takes_a_block_a_cell():
    plan = make_plan(StGridPool((6,), (1,)), 6, 6, 8)  # six tiles, three rows of two: 2x4 cells each
    first, second = launches(plan, WALK)
    assert first == (0, 11, 8, 1, 88)  # windows: 3 rows of one walk
    assert second == (11, 0, 1, 6, 6)  # one summary: 3 rows of 2 walks


def test_the_generic_way_does_windows_and_cells_of_a_task_one_after_the_other():
    plan = make_plan(StGridPool((4,), (1,)), 4, 6, 10)
    generic = Variant("bfloat16", True, -1, 0, 1, 256, 1)
    assert launches(plan, generic) == ((0, 4, 30, 1, 120), (4, 0, 1, 15, 15))


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


class Status(int):
    name = "NO_DEVICE"


def test_a_call_that_fails_is_named_and_one_that_does_not_gives_its_value():
    assert (nvrtc._checked((0, 7)), nvrtc._checked((0, 7, 8)), nvrtc._checked((0,))) == (7, 7, None)
    with pytest.raises(EngineError, match="NO_DEVICE"):
        nvrtc._checked((Status(100), 7))


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
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: compiler)
    with pytest.raises(EngineError, match=r"^NVRTC can't compile the kernel for sm_90: error: no such type$"):
        nvrtc.compile_kernel.__wrapped__(Variant("float32", True, -1, 2, 2, 64, 2), "sm_90")
    assert compiler.destroyed == ["program"]
