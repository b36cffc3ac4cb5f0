"""The C++ runtime for 64-bit ARM: everything but TensorRT cross-compiles, and an emulator gets Python's answers from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cpp_build import BUILD, ONE_FILE_A_TARGET, SOURCES, build
from video_files import pattern, write_video

from runtime.bundle import Bundle
from runtime.chat import VideoChat

pytestmark = pytest.mark.slow

SYSROOT = BUILD.with_name("arm64")
QUESTION = "which shape appears last ?"

# ONNX Runtime asks /proc/cpuinfo what the CPU can, and crashes where an ARM build reads the host's. The emulator shows this one.
CORTEX_A72 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


@pytest.fixture(scope="module")
def program() -> Path:
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("no aarch64-linux-gnu-g++; run runtime/cpp/install-packages.sh")
    fetched = subprocess.run([SOURCES / "cmake" / "aarch64-sysroot.sh", SYSROOT], capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"apt could not bring the arm64 packages: {fetched.stderr[-300:]}")
    toolchain = [
        "--toolchain",
        str(SOURCES / "cmake" / "aarch64.cmake"),
        f"-DGRIDPOOL_SYSROOT={SYSROOT}",
        "-DCMAKE_PREFIX_PATH=/usr",
    ]
    return build(BUILD.with_name("cpp-aarch64"), *toolchain, "-DGRIDPOOL_TESTS=OFF", *ONE_FILE_A_TARGET) / "gridpool"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libonnxruntime.so of this Python's release, from the wheel for ARM."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    wanted = [f"onnxruntime=={onnxruntime.__version__}", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    platforms = [word for minor in (27, 28, 34) for word in ("--platform", f"manylinux_2_{minor}_aarch64")]
    fetched = subprocess.run([sys.executable, "-m", "pip", "download", "-q", *platforms, *wanted], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"pip could not bring ONNX Runtime for ARM: {fetched.stderr[-300:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if "/libonnxruntime.so.1" in name)
        return Path(files.extract(name, folder))


def test_the_program_is_linked_for_aarch64(program: Path):
    for file in (program, program.with_name("libgridpool.so")):
        header = file.read_bytes()[:20]
        assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def test_tokens_and_answer_are_those_of_python(program: Path, library: Path, bundle_path: Path, clip: Path, tmp_path: Path):
    if not shutil.which("qemu-aarch64"):
        pytest.skip("no qemu-aarch64; run runtime/cpp/install-packages.sh")
    (SYSROOT / "proc").mkdir(exist_ok=True)
    (SYSROOT / "proc" / "cpuinfo").write_text(CORTEX_A72)
    libraries = "/usr/lib/aarch64-linux-gnu"
    paths = ":".join([libraries, *(f"{libraries}/{folder}" for folder in ("blas", "lapack", "pulseaudio"))])

    def emulated(*words: str | Path) -> dict:
        command = [
            "qemu-aarch64",
            "-L",
            SYSROOT,
            "-E",
            f"LD_LIBRARY_PATH={paths}",
            program,
            *words,
            "--json",
            "--onnxruntime",
            library,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    chat = VideoChat.open(Bundle.open(bundle_path), "onnx")
    text = "".join(chat.ask(clip, QUESTION))
    answer = emulated("run", bundle_path, clip, QUESTION)
    assert (answer["text"], answer["ids"]) == (text, chat.answer.ids)
    # FFmpeg turns YUV into RGB with other roundings on ARM (1 % in a token), so the comparison by number is of RGB without loss.
    exact = write_video(tmp_path / "exact.mov", pattern(16), codec="png", pixel_format="rgb24")
    emulated("tokens", bundle_path, exact, "-o", tmp_path / "tokens.npz")
    tokens, expected = np.load(tmp_path / "tokens.npz")["visual_tokens"], chat.vision.encode(exact).tokens
    assert np.abs(tokens - expected).max() <= 1e-5 * np.abs(expected).max()
