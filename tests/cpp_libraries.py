"""Libraries that are no ONNX Runtime, and bundles whose graphs are loaded by two threads: what the C++ runtime must survive."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from cpp_build import onnxruntime_library

_FAKE = """
struct Base { const void* (*api)(unsigned); const char* (*version)(void); };
static const void* api(unsigned number) { (void)number; return 0; }
static const char* version(void) { return VERSION; }
static struct Base base = {api, version};
struct Base* OrtGetApiBase(void) { return &base; }
"""


def compile_library(file: Path, source: str) -> Path:
    """A shared library made of C; skip where there is no compiler."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", file]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return file


def _for_arm(file: Path) -> Path:
    """The header of a real library with another machine in it: all that a loader looks at before it refuses."""
    content = bytearray(onnxruntime_library().read_bytes()[:4096])
    here = struct.unpack_from("<H", content, 18)[0]
    struct.pack_into("<H", content, 18, 183 if here != 183 else 62)  # EM_AARCH64, EM_X86_64
    file.write_bytes(content)
    return file


def unusable_libraries(folder: Path) -> dict[str, tuple[Path, str]]:
    """{what is wrong: (file, words of the message)}"""
    content = onnxruntime_library().read_bytes()
    cut, headless, empty, text, pipe = (folder / name for name in ("cut.so", "headless.so", "empty.so", "text.so", "pipe.so"))
    cut.write_bytes(content[: len(content) // 3])
    headless.write_bytes(content[:40])
    empty.write_bytes(b"")
    text.write_text("/usr/lib/libonnxruntime.so.1")
    os.mkfifo(pipe)
    return {
        "missing": (folder / "none.so", "does not exist"),
        "truncated": (cut, "is truncated"),
        "truncated in its header": (headless, "is truncated"),
        "empty": (empty, "is not a shared library"),
        "text": (text, "is not a shared library"),
        "a directory": (folder, "is a directory"),
        "a pipe": (pipe, "is not a regular file"),
        "for another machine": (_for_arm(folder / "arm.so"), "is for "),
        "another library": (compile_library(folder / "other.so", "int nothing;"), "has no OrtGetApiBase"),
        "too old": (
            compile_library(folder / "old.so", _FAKE.replace("VERSION", '"1.16.3"')),
            "is ONNX Runtime 1.16.3, expected 1.18 or newer",
        ),
        "of a later kind": (compile_library(folder / "two.so", _FAKE.replace("VERSION", '"2.0.0"')), "is ONNX Runtime 2.0.0"),
        "without an interface": (
            compile_library(folder / "none18.so", _FAKE.replace("VERSION", '"1.18.0"')),
            "is ONNX Runtime 1.18.0 without the interface",
        ),
        "without a version": (compile_library(folder / "mute.so", _FAKE.replace("VERSION", "0")), "does not say which"),
    }


def enlarge(bundle_path: Path, folder: Path) -> Path:
    """A copy of a bundle, past the size from which both graphs are loaded at the same time."""
    shutil.copytree(bundle_path, folder)
    size = 65 << 20
    with open(folder / "padding.bin", "wb") as file:
        file.truncate(size)
    list_file(folder, "padding.bin")
    return folder


def list_file(folder: Path, name: str) -> None:
    """Let the manifest say of a file what it is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
