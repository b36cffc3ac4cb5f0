"""What is installed and usable on this machine, and what each missing thing would give, with the command that brings it.

Nothing here fails: a package that can't be imported is reported as broken, with its error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plugins.tensorrt import LIBRARY as PLUGIN_LIBRARY
from runtime.core.errors import UserError, install_command
from runtime.core.machine import available_memory, cores, total_memory
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.tools.table import size, table


@dataclass(frozen=True)
class Check:
    """ok: usable here; found: version and details, or what is wrong; gives: what it is for, and how to get it."""

    name: str
    ok: bool
    found: str
    gives: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report() -> list[Check]:
    """Every check, in the order in which data travels: machine, decoding, prompt, engines, GPU."""
    runtime, system = install_command("runtime"), f"{platform.system()} {platform.machine()}"
    return [
        Check("python", sys.version_info >= (3, 10), f"{platform.python_version()} on {system}", "3.10 or newer"),
        Check("processor", True, f"{cores()} cores for this process, {_memory()}", "ONNX Runtime uses them all"),
        Check("disk", True, f"{size(shutil.disk_usage(Path.cwd()).free)} free in {Path.cwd()}", "bundles and engines"),
        _package("numpy", "all arrays", runtime),
        _package("av", "decoding video", runtime, lambda av: f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"),
        _package("PIL", "resizing frames as the checkpoint's processor does", runtime, name="pillow"),
        _package("tokenizers", "the prompt's tokens; without it `tokens` still works", runtime),
        _package("jinja2", "the chat template; without it `tokens` still works", runtime),
        _onnxruntime(),
        _package(
            "openvino", "the openvino backend: Intel and Arm CPUs, Intel GPUs and NPUs", install_command("openvino"), _devices
        ),
        _package("onnx", "stages for `parity`", runtime),
        _package("polygraphy", "`parity` and its comparisons", runtime),
        _package("matplotlib", "`plot`", install_command("plot")),
        _driver(),
        _cuda_bindings(),
        _tensorrt("tensorrt", "the fastest engines, for the GPU of this machine", install_command("gpu")),
        _tensorrt("tensorrt-rtx", "engines for GeForce and RTX cards, built without a GPU", install_command("rtx")),
        _plugin(),
    ]


def text(checks: list[Check]) -> str:
    """The checks as a table: what is usable, and what it is for."""
    rows = [[check.name, "yes" if check.ok else "no", check.found, check.gives] for check in checks]
    return table(["", "usable", "found", "gives"], rows)


def _package(module: str, gives: str, install: str, details: Callable[[Any], str] | None = None, name: str = "") -> Check:
    """name: of the distribution, where it is not the module's."""
    name = name or module
    if importlib.util.find_spec(module) is None:
        return Check(name, False, "not installed", f"{gives}: {install}")
    try:
        imported = importlib.import_module(module)
        found = importlib.metadata.version(name) + (f", {details(imported)}" if details else "")
    except Exception as error:  # whatever a broken installation raises is what is to be reported
        return Check(name, False, f"broken: {_one_line(error)}", f"{gives}: {install} --force-reinstall")
    return Check(name, True, found, gives)


def _onnxruntime() -> Check:
    """The CPU and the GPU wheel put their files into the same directory: with both, neither is complete."""
    wheels = [wheel for wheel in ("onnxruntime", "onnxruntime-gpu") if _version(wheel)]
    if len(wheels) == 2:
        found = " and ".join(f"{wheel} {_version(wheel)}" for wheel in wheels)
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        return Check("onnxruntime", False, found, f"the two wheels exclude each other: {remedy}")
    gives = "the onnx backend, on every machine"
    name = wheels[0] if wheels else "onnxruntime"
    check = _package("onnxruntime", gives, install_command("runtime"), lambda ort: ", ".join(ort.get_available_providers()), name)
    if check.ok and "CUDAExecutionProvider" not in check.found and cuda.gpus():
        remedy = f"pip uninstall -y onnxruntime, then {install_command('gpu')}"
        return replace(check, gives=f"{gives}; on the GPU with: {remedy}")
    return check


def _devices(_module: Any) -> str:
    from runtime.engine.openvino import core

    return ", ".join(core().available_devices)


def _driver() -> Check:
    gives = "running on the GPU"
    reason = cuda.no_gpu()
    if reason:
        return Check("gpu", False, reason.split(";")[0], f"{gives}; everything else works without")
    found = ", ".join(f"{gpu.name} ({gpu.target}, {size(gpu.memory)})" for gpu in cuda.gpus())
    return Check("gpu", True, f"{found}, driver for CUDA {cuda.driver_version()}", gives)


def _cuda_bindings() -> Check:
    gives, version = "GPUs: buffers of the TensorRT engines, the plugin's kernel", _version("cuda-bindings")
    return Check(
        "cuda-bindings", bool(version), version or "not installed", gives if version else f"{gives}: {install_command('gpu')}"
    )


def _tensorrt(backend: str, gives: str, install: str) -> Check:
    if not facade.installed(backend):
        return Check(backend, False, "not installed", f"{gives}: {install}")
    try:
        version = facade.load(backend).__version__
    except UserError as error:
        return Check(backend, False, _one_line(error), f"{gives}: {install}")
    uses = "builds and runs engines" if cuda.gpus() else "builds engines, runs none without a GPU"
    return Check(backend, bool(cuda.gpus()) or backend == "tensorrt-rtx", f"{version}, {uses}", gives)


def _plugin() -> Check:
    """The fused compression kernel, which TensorRT can run instead of the graph's nodes."""
    root = Path(__file__).parents[2]
    found = sorted(path for part in ("plugins", "build") for path in (root / part).rglob(PLUGIN_LIBRARY))
    gives = "compression in one kernel (`build --plugin`); without it TensorRT runs the same nodes one by one"
    return Check("plugin library", bool(found), str(found[0]) if found else "not built: cmake -S plugins -B build/plugins", gives)


def _memory() -> str:
    total, free = total_memory(), available_memory()
    return f"{size(free)} of {size(total)} memory free" if total and free else "memory unknown"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
