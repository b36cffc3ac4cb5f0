"""`--device auto` in both runtimes, on a machine that a stand-in for NVIDIA's driver gives a GPU. Nothing computes on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_build import ROOT, gridpool, refusal
from cpp_libraries import compile_library

QUESTION = "which shape appears last ?"
CLIP = ROOT / "export" / "demo" / "clips" / "shapes.mp4"

_DRIVER = """
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGetCount(int* count) { *count = GPUS; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int size, int device) { (void)device; strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { (void)device; *value = attribute == 75 ? 8 : 7; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { (void)device; *bytes = 1u << 30; return 0; }
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long long flags, int* status) {
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);  /* how cuda-bindings finds the others */
  (void)version, (void)flags;
  *function = strcmp(name, "cuDeviceTotalMem") ? dlsym(self, name) : (void*)cuDeviceTotalMem_v2;
  if (status) *status = !*function;
  return *function ? 0 : 500;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    """{GPUs of the machine: an environment in which its driver is found}"""
    environments = {}
    for gpus in (0, 1):
        folder = tmp_path_factory.mktemp(f"driver{gpus}")
        compile_library(folder / "libcuda.so.1", _DRIVER.replace("GPUS", str(gpus)))
        environments[gpus] = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    return environments


def _python(*words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "runtime", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


@pytest.fixture(params=["cpp", "python"])
def runtime(request: pytest.FixtureRequest, cpp: Path):
    def run(*words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        return gridpool(cpp, *words, env=env) if request.param == "cpp" else _python(*words, env=env)

    return run


def test_a_gpu_that_cannot_be_used_is_passed_over_and_logged_in_one_line(runtime, driver, bundle_path: Path):
    for backend in ("auto", "onnx"):
        done = runtime("run", bundle_path, CLIP, QUESTION, "--backend", backend, env=driver[1])
        assert (done.returncode, done.stdout) == (0, "cross\n"), done.stderr
        assert all(name in done.stderr for name in ("cpu", "Orin", "onnx", "CUDA")) and done.stderr.count("\n") == 1
        assert ("tensorrt" in done.stderr) == (backend == "auto")


def test_a_device_that_is_named_is_taken_or_refused(runtime, driver, bundle_path: Path):
    done = runtime("run", bundle_path, CLIP, QUESTION, "--device", "cpu", env=driver[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "cross\n", "")
    done = runtime("run", bundle_path, CLIP, QUESTION, "--backend", "onnx", "--device", "cuda", env=driver[1])
    assert "onnx" in refusal(done) and "CUDA" in done.stderr


def test_a_driver_without_a_gpu_is_the_cpu(runtime, driver, bundle_path: Path):
    done = runtime("run", bundle_path, CLIP, QUESTION, env=driver[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "cross\n", "")
    done = runtime("run", bundle_path, CLIP, QUESTION, "--backend", "tensorrt", env=driver[0])
    assert "tensorrt" in refusal(done) and "no GPU" in done.stderr
