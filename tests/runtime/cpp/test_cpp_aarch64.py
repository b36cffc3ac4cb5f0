"""The C++ runtime for 64-bit ARM: everything but TensorRT cross-compiles and links."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from cpp_build import BUILD, SOURCES, build

pytestmark = pytest.mark.slow


def test_the_program_links_for_aarch64():
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("no aarch64-linux-gnu-g++; run runtime/cpp/install-packages.sh")
    sysroot = BUILD.with_name("arm64")
    fetched = subprocess.run([SOURCES / "cmake" / "aarch64-sysroot.sh", sysroot], capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"apt could not bring the arm64 packages: {fetched.stderr[-300:]}")
    options = ["--toolchain", str(SOURCES / "cmake" / "aarch64.cmake"), f"-DGRIDPOOL_SYSROOT={sysroot}", "-DGRIDPOOL_TESTS=OFF"]
    directory = build(BUILD.with_name("cpp-aarch64"), *options, "-DCMAKE_PREFIX_PATH=/usr")
    for name in ("gridpool", "libgridpool.so"):
        header = (directory / name).read_bytes()[:20]
        assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
