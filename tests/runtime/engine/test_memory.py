"""What a load mapped leaves memory and is still there; what others mapped, or may have changed, is not touched. Freed blocks leave too."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.engine import EngineOptions
from runtime.engine.memory import released_after

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
    with released_after(file.parent):
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
    with released_after(file.parent):
        elsewhere = np.memmap(other, np.uint8, "r")
        elsewhere.sum()
    assert resident(file) == resident(other) == SIZE


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_changes_are_kept(file, mode):
    with released_after(file.parent):
        values = np.memmap(file, np.uint8, mode)
        values[:] = 7
    assert (values == 7).all()


def test_a_load_that_fails_releases_nothing_and_lets_the_next_one_in(file):
    with pytest.raises(ValueError, match="broken"), released_after(file.parent):
        raise ValueError("broken")
    with released_after(file.parent):
        pass


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
from runtime.engine.memory import large_blocks_apart

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if {apart}:
    print(large_blocks_apart())
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
from runtime.engine.memory import large_blocks_apart

class Info(ctypes.Structure):  # mallinfo2 of glibc's malloc.h; hblks: the blocks that are mapped
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keep".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, Info
large_blocks_apart()
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
