"""The C++ programs that run on a GPU, built where they are to run: for a GPU by CMake with the CUDA toolkit, else on stand-ins.

    cuda-on-gpu, kernel-on-gpu, planted-faults      see tests/runtime/cpp/native/cuda and tests/plugins/library

The stand-ins are a CUDA runtime in host memory and a driver that runs the kernel on the CPU; with them g++ and CUDA's headers are
enough, and the address sanitizer replaces compute-sanitizer.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path

import processes

BUILD_SECONDS = 300
ROOT = Path(__file__).resolve().parent.parent
CUDA_TESTS = ROOT / "tests" / "runtime" / "cpp" / "native" / "cuda"
LIBRARY_TESTS = ROOT / "tests" / "plugins" / "library"


class BuildError(RuntimeError):
    """What the compiler said last."""


def missing(device: str) -> str:
    """What this machine lacks to build the programs, "" where it lacks nothing."""
    tools = ("cmake", "nvcc", "g++") if device == "cuda" else ("g++",)
    lacking = [tool for tool in tools if not _tool(tool)]
    if device == "cpu" and not cuda_include():
        lacking.append("cuda_runtime_api.h of the CUDA toolkit")
    return ", ".join(lacking)


def build_cuda_program(device: str, folder: Path) -> Path:
    """cuda-on-gpu; BuildError where it does not build."""
    if device == "cuda":
        return _cmake(CUDA_TESTS, folder) / "cuda-on-gpu"
    sources = ROOT / "runtime" / "cpp"
    parts = [sources / "src" / f"{name}.cpp" for name in ("cuda_driver", "library")]
    includes = [f"-I{sources / name}" for name in ("include", "src", "tensorrt")]
    _stand_in_runtime(folder, "address,undefined")
    program = folder / "cuda-on-gpu"
    _gxx(folder, "address,undefined", CUDA_TESTS / "cuda_on_gpu.cpp", *parts, *includes, "-o", program, "-lcudart_stand_in", "-ldl")
    return program


def build_kernel_programs(device: str, folder: Path, architecture: str = "native") -> Path:
    """kernel-on-gpu and, for a GPU, planted-faults beside it. architecture: CMake's name, native for this machine's GPUs."""
    if device == "cuda":
        return _cmake(LIBRARY_TESTS, folder, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}") / "kernel-on-gpu"
    includes = [f"-I{ROOT / name}" for name in ("runtime/cpp/include", "runtime/cpp/tensorrt", "plugins/csrc")]
    _stand_in_runtime(folder, "")
    driver = ROOT / "tests" / "plugins" / "stand_in_driver.cpp"
    _gxx(folder, "", "-shared", driver, "-o", folder / "libdriver_stand_in.so", "-ldl")
    program = folder / "kernel-on-gpu"
    sources = [LIBRARY_TESTS / name for name in ("kernel_on_gpu.cpp", "launch_on_cpu.cpp")]
    _gxx(folder, "", *sources, *includes, "-o", program, "-ldriver_stand_in", "-lcudart_stand_in")
    return program


def environment(device: str, folder: Path) -> dict[str, str]:
    """In which a program of `folder` finds its libraries."""
    if device == "cuda":
        return dict(os.environ)
    return os.environ | {"LD_LIBRARY_PATH": f"{folder}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"}


@functools.cache
def cuda_include() -> Path | None:
    """Where CUDA's headers are: the toolkit's, or those of NVIDIA's wheels."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    roots += [Path(nvcc).resolve().parent.parent for nvcc in [shutil.which("nvcc")] if nvcc] + [Path("/usr/local/cuda")]
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations or () if spec else ():
        roots += sorted(Path(location).glob("*"))
    return next((root / "include" for root in roots if (root / "include" / "cuda_runtime_api.h").is_file()), None)


def _stand_in_runtime(folder: Path, sanitize: str) -> None:
    _gxx(folder, sanitize, "-shared", CUDA_TESTS / "stand_in_runtime.cpp", "-o", folder / "libcudart_stand_in.so")
    driver = folder / "libcuda.so.1"
    if not driver.exists():
        driver.symlink_to("libcudart_stand_in.so")


def _gxx(folder: Path, sanitize: str, *words: str | Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-I{cuda_include()}", f"-L{folder}"]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    _run("g++", *flags, *words)


def _cmake(source: Path, folder: Path, *options: str) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run(_tool("cmake"), "-S", source, "-B", folder, *generator, f"-DCMAKE_CUDA_COMPILER={_tool('nvcc')}", *options)
    _run(_tool("cmake"), "--build", folder, "-j", str(os.cpu_count()))
    return folder


def _tool(name: str) -> str:
    """The program's path, even if the toolkit is not on PATH; "" if there is none."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin") or ""


def _run(*words: str | Path) -> None:
    text, status = processes.run(words, BUILD_SECONDS)
    if status != 0:
        ended = f"not done after {BUILD_SECONDS} s: " if status is None else ""
        raise BuildError(f"{Path(words[0]).name}: {ended}{text.strip()[-2000:]}")
