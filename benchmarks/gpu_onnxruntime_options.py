"""What the CUDA provider's switches do to the vision graph: CUDA graph, convolution search, TF32, NHWC, the arena.

Each row is a separate session with the clip and the tokens bound to device memory. A CUDA graph replays what an early run
launched: it needs every node on the GPU and the same addresses. What is compared comes from one more run, after the clip in
device memory was replaced by another and the tokens by NaN, so that a replay that reads or writes elsewhere, or does nothing, is
seen. All rows but TF32's compute the same in the same precision, and must be as near to the plain session as parity asks of that
precision.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_onnxruntime_report import Report
from gpu_onnxruntime_sessions import clip_for, empty_output, milliseconds, on_device, run_bound, session
from harness import log, table

SWITCHES: dict[str, dict[str, str]] = {
    "as the runtime opens it": {},
    "CUDA graph": {"enable_cuda_graph": "1"},
    "convolutions by heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "TF32": {"use_tf32": "1"},
    "NHWC": {"prefer_nhwc": "1"},
    "arena grows in powers of two": {"arena_extend_strategy": "kNextPowerOfTwo"},
}
ROUNDED = ("TF32",)  # switches that change the precision: their difference is shown, not judged
DIFFERENCE = "largest difference / largest value"
COLUMNS = ("", "load s", "first run s", "run ms", DIFFERENCE, "as plain", "GPU MB held")


def options_of(args: argparse.Namespace, report: Report) -> None:
    from runtime.tools.compare import tolerance

    for directory in args.bundles:
        if directory.name.endswith("-standard"):  # the decoder's variant: its vision graph is the other bundle's
            continue
        section, rows, numbers, plain, differing = f"provider options, vision of {directory.name}", [], {}, None, []
        for name, options in SWITCHES.items():
            log(f"{name}, {directory.name}")
            title = f"{name}, vision of {directory.name}"
            got = report.attempt(title, lambda d=directory, o=options: _measure(d, args, o))
            if got is None and plain is None:
                break  # the plain session is the first, and without it there is nothing to compare with
            if got is None:
                continue
            measured, tokens = got
            plain = tokens if plain is None else plain
            measured[DIFFERENCE] = relative_difference(tokens, plain)
            same = measured[DIFFERENCE] <= tolerance("fp16" if tokens.dtype == np.float16 else "fp32")
            measured["as plain"] = "not asked" if name in ROUNDED else "yes" if same else "**no**"
            differing += [name] if measured["as plain"] == "**no**" else []
            numbers[name] = measured
            rows.append([name, *(measured[column] for column in COLUMNS[1:])])
            report.add(section, numbers)
        report.section(section, table(COLUMNS, rows), numbers)
        if differing:
            report.failed(f"verdict on options, {directory.name}", f"other tokens than the plain session's: {', '.join(differing)}")


def relative_difference(tokens: np.ndarray, plain: np.ndarray) -> float:
    """Largest difference, as a share of the plain session's largest value."""
    plain = plain.astype(np.float32)
    return float(np.abs(tokens.astype(np.float32) - plain).max() / np.abs(plain).max())


def _measure(directory: Path, args: argparse.Namespace, options: dict[str, str]) -> tuple[dict[str, Any], np.ndarray]:
    from runtime.bundle import VISION, Bundle

    bundle = Bundle.open(directory)
    before = _gpu_bytes(args.device)
    start = time.perf_counter()
    made = session(bundle.model(VISION), args.device, **options)
    loaded = time.perf_counter() - start
    ((name, clip),) = clip_for(made, bundle).items()
    binding, source, target = made.io_binding(), on_device(clip, args.device), empty_output(made, 0, args.device)
    binding.bind_ortvalue_input(name, source)
    binding.bind_ortvalue_output(made.get_outputs()[0].name, target)
    start = time.perf_counter()
    run_bound(made, binding)
    first = time.perf_counter() - start
    spent = milliseconds(lambda: run_bound(made, binding), args.rounds)
    held = (_gpu_bytes(args.device) - before) / 1e6
    tokens = _tokens_of_another_clip(made, binding, source, target, clip)
    return {"load s": loaded, "first run s": first, "run ms": spent, "GPU MB held": held}, tokens


def _tokens_of_another_clip(made: Any, binding: Any, source: Any, target: Any, clip: np.ndarray) -> np.ndarray:
    """RuntimeError where a run leaves some of the poisoned output as it is."""
    source.update_inplace(np.ascontiguousarray(-clip))
    target.update_inplace(np.full_like(target.numpy(), np.nan))
    run_bound(made, binding)
    tokens = target.numpy().copy()
    if not np.isfinite(tokens).all():
        raise RuntimeError("its tokens are not finite, or were not written")
    return tokens


def _gpu_bytes(device: str) -> int:
    """Bytes of the GPU in use, by everything on it; 0 on a CPU."""
    if device != "cuda":
        return 0
    from plugins.driver import Device, driver

    with Device(0).active():
        _, free, total = driver().cuMemGetInfo()
    return total - free
