"""What a load mapped leaves memory and is still there; what others mapped, or may have changed, is not touched. Freed blocks leave too."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.engine import EngineOptions
from runtime.engine import openvino_memory as memory
from runtime.engine.openvino_memory import release_mapped_pages

SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="no /proc/self/smaps to see what is resident")
SIZE = 1 << 22


def resident(path: Path) -> int:
    """Bytes of the file's maps that are in this process's memory."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)
    ours = [part for part in parts if part.splitlines() and part.splitlines()[0].endswith(f" {path}")]
    return sum(int(re.search(r"^Rss: +(\d+) kB", part, re.MULTILINE)[1]) * 1024 for part in ours)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a directory" / "weights.data"
    path.parent.mkdir()
    np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tofile(path)
    return path


def test_what_was_mapped_within_leaves_memory_and_reads_the_same(file):
    expected = file.read_bytes()
    with release_mapped_pages(file.parent):
        values = np.memmap(file, np.uint8, "r")
        assert values.tobytes() == expected
        assert resident(file) == SIZE
    assert resident(file) == 0
    assert values.tobytes() == expected


def test_what_was_mapped_before_or_elsewhere_stays(file, tmp_path):
    other = tmp_path / "other.data"
    other.write_bytes(file.read_bytes())
    earlier = np.memmap(file, np.uint8, "r")
    earlier.sum()
    with release_mapped_pages(file.parent):
        elsewhere = np.memmap(other, np.uint8, "r")
        elsewhere.sum()
    assert resident(file) == resident(other) == SIZE


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_changes_are_kept(file, mode):
    with release_mapped_pages(file.parent):
        values = np.memmap(file, np.uint8, mode)
        values[:] = 7
    assert (values == 7).all()


def test_a_load_that_fails_releases_nothing_and_lets_the_next_one_in(file):
    with pytest.raises(ValueError, match="broken"), release_mapped_pages(file.parent):
        raise ValueError("broken")
    with release_mapped_pages(file.parent):
        pass


def test_which_maps_are_of_a_directory_and_read_only(tmp_path, monkeypatch):
    """As of /proc/self/maps: addresses, permissions, offset, device, inode, path."""
    folder, maps = tmp_path / "a b", tmp_path / "maps"
    folder.mkdir()
    lines = [
        f"7f00-7f80 r--p 00000000 08:01 77 {' ' * 20}{folder}/weights.data",
        f"8000-8001 r-xs 00000000 08:01 78 {folder}/deeper/other file (deleted)",
        f"9000-9001 rw-p 00000000 08:01 79 {folder}/written",
        f"a000-a001 r--p 00000000 08:01 80 {folder}2/weights.data",
        f"b000-b001 r--p 00000000 08:01 80 /elsewhere{folder}/weights.data",
        f"c000-c001 r--p 00000000 08:01 80 {folder}",
        "d000-d001 r--p 00000000 00:00 0",
        "e000-e001 rw-p 00000000 00:00 0 [heap]",
    ]
    maps.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(memory, "_MAPS", maps)
    assert memory._maps_of(folder / ".." / "a b") == memory._maps_of(folder)
    assert memory._maps_of(folder) == {(0x7F00, 0x7F80), (0x8000, 0x8001)}
    maps.unlink()
    assert memory._maps_of(folder) == set()


def test_pages_of_new_maps_alone_are_let_go(monkeypatch):
    """Of each the address, the length, and MADV_DONTNEED of mman.h."""
    told, maps = [], iter([{(0x1000, 0x3000)}, {(0x1000, 0x3000), (0x5000, 0x9000)}])
    libc = SimpleNamespace(madvise=lambda start, length, advice: told.append((start.value, length.value, advice)))
    monkeypatch.setattr(memory, "_maps_of", lambda directory: next(maps))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc if name is None else None)
    with release_mapped_pages(Path("a")):
        assert memory._loading.locked() and not told
    assert told == [(0x5000, 0x4000, 4)] and not memory._loading.locked()


@pytest.mark.parametrize(("answer", "chosen", "apart"), [(1, None, True), (0, None, False), (1, "65536", False)])
def test_the_threshold_of_large_blocks_is_4_mib_unless_one_was_chosen(monkeypatch, answer, chosen, apart):
    told = []
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    if chosen:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", chosen)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *arguments: told.append(arguments) or answer))
    assert memory.lower_mmap_threshold() is apart
    assert told == ([] if chosen else [(-3, 4 << 20)])  # M_MMAP_THRESHOLD of malloc.h


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_without_glibc_blocks_stay_as_they_are(monkeypatch, error):
    def fail(name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert memory.lower_mmap_threshold() is False


def test_an_openvino_engine_keeps_no_second_copy(tmp_path):
    pytest.importorskip("openvino")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from runtime.engine.openvino import OpenVINOEngine

    weight = np.random.default_rng(0).normal(0, 1, (1024, 1024)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1024])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    engine = OpenVINOEngine.load(path, EngineOptions(threads=1))
    assert "model.onnx.data" in Path("/proc/self/maps").read_text()  # else there would be nothing to release
    assert resident(tmp_path / "model.onnx.data") == 0
    x = np.ones((1, 1024), np.float32)
    np.testing.assert_allclose(engine.run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-3)


# Blocks that grow, each asked for while a small one behind the last keeps the heap from shrinking: what a prefill asks for.
GROWING = """
import ctypes
from pathlib import Path
from runtime.engine.openvino_memory import lower_mmap_threshold

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if {apart}:
    print(lower_mmap_threshold())
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(31 << 20))))  # glibc learns that such blocks come again
for size in range(8 << 20, 24 << 20, 1 << 19):
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    pin = libc.malloc(ctypes.c_size_t(1 << 10))
    libc.free(ctypes.c_void_p(block))
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""


# Whether a frame of 720p is mapped, and one of 1080p.
FRAMES = """
import ctypes
from runtime.engine.openvino_memory import lower_mmap_threshold

class Info(ctypes.Structure):  # mallinfo2 of glibc's malloc.h; hblks: the blocks that are mapped
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keep".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, Info
lower_mmap_threshold()
for size in (1280 * 720 * 3, 1920 * 1080 * 3):
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(size))
    print(libc.mallinfo2().hblks - before)
"""


def printed(code: str, **environment: str) -> list[str]:
    """The words that `code` prints in a process of its own."""
    command, root = [sys.executable, "-c", code], Path(__file__).parents[3]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root, env=os.environ | environment
    ).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_blocks_leave_no_holes():
    def run(apart: bool, **environment: str) -> list[str]:
        return printed(GROWING.format(apart=apart), **environment)

    (heap,) = run(False)
    said, apart = run(True)
    assert said == "True"
    assert int(heap) - int(apart) > 20 << 20
    assert run(True, MALLOC_MMAP_THRESHOLD_=str(32 << 20))[0] == "False"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc that counts its blocks")
def test_frames_that_come_again_stay_in_the_heap():
    assert printed(FRAMES) == ["0", "1"]
