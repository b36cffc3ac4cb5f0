"""The bundles that the ONNX Runtime step needs, made where it runs: demo bundles in seconds, a 0.5B one in minutes.

    python benchmarks/gpu_onnxruntime.py --make demo|0.5b|tiny DIR [--threads 8]

`demo`: fp32 and fp16, every variant of attention, side by side. `0.5b`: a random checkpoint and its export in fp16; start it in
the background, early, on some of the cores. What is there already is kept. Prints the seconds of each step as JSON.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import processes
from harness import ROOT, log

DEMO = {
    "fp32": ("--precision", "fp32"),
    "fp16": ("--precision", "fp16"),
    "fp32-standard": ("--precision", "fp32", "--attention", "standard"),
    "fp16-standard": ("--precision", "fp16", "--attention", "standard"),
    "fp16-flash": ("--precision", "fp16", "--attention", "flash"),
}
CUDA_ALONE = ("fp16-flash",)  # no CPU runs its decoder
MANIFEST = "manifest.json"


def make(kind: str, directory: Path, frames: int, threads: int) -> int:
    """Write the bundles of `kind` under `directory`: demo names, or `checkpoint` and `fp16` for a size of random_checkpoint.py."""
    directory.mkdir(parents=True, exist_ok=True)
    seconds = demo(directory, threads) if kind == "demo" else random_bundle(kind, directory, frames, threads)
    print(json.dumps({"made": str(directory), "seconds": seconds}), flush=True)
    return 0


def demo(directory: Path, threads: int) -> dict[str, float]:
    """All demo bundles, exported at once, each in its own process."""
    start = time.perf_counter()
    missing = {name: options for name, options in DEMO.items() if not (directory / name / MANIFEST).exists()}
    share = max(1, threads // max(1, len(missing)))
    log(f"exporting the demo checkpoint as {', '.join(missing) or 'nothing new'}")
    running = {
        name: processes.start(_export(directory / name, *options), cwd=ROOT, env=_environment(share), stdout=sys.stderr)
        for name, options in missing.items()
    }
    failed = [name for name, process in running.items() if processes.wait(process, math.inf)]
    if failed:
        log(f"the export of {', '.join(failed)} failed; what needs it is left out")
    return {"demo": round(time.perf_counter() - start, 2)}


def random_bundle(size: str, directory: Path, frames: int, threads: int) -> dict[str, float]:
    """A random checkpoint of `size` and its fp16 bundle; SystemExit where one fails."""
    seconds = {}
    checkpoint, bundle = directory / "checkpoint", directory / "fp16"
    steps = {
        "checkpoint": (
            checkpoint / "config.json",
            [sys.executable, "benchmarks/random_checkpoint.py", "--size", size, "--out", str(checkpoint)],
        ),
        "export": (
            bundle / MANIFEST,
            _export(bundle, "--checkpoint", str(checkpoint), "--precision", "fp16", "--frames", str(frames), "--force"),
        ),
    }
    for name, (done, command) in steps.items():
        if name == "export" and done.exists():
            continue
        start = time.perf_counter()
        if not (name == "checkpoint" and (directory / "checkpoint.complete").exists()):
            log(f"{name} of {size}")
            process = processes.start(command, cwd=ROOT, env=_environment(threads), stdout=sys.stderr)
            failed = processes.wait(process, math.inf)
            if failed:
                raise SystemExit(f"{name} of {size} failed with {failed}")
            (directory / f"{name}.complete").touch()
        seconds[name] = round(time.perf_counter() - start, 2)
    return seconds


def _export(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "export", "--model", "llava-ov", "--out", str(out), *options]


def _environment(threads: int) -> dict[str, str]:
    """This process's, with `threads` for torch, and the GPU hidden: an export has no use for it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | dict.fromkeys(names, str(threads)) | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
