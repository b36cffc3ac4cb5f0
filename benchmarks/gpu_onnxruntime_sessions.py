"""ONNX Runtime sessions with the provider options under test, and the clocks around them.

`OnnxEngine(session, device)` makes a runtime engine of any session, so the runtime's own decoder runs on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def session(model: Path | bytes, device: str, data: Path | None = None, profile: Path | None = None, **options: str) -> Any:
    """A session on `device`. data: where a serialised model's weights are; options: the CUDA provider's own.

    RuntimeError where the CUDA provider was asked for and is not there: numbers of a CPU must not pass for a GPU's.
    """
    import onnxruntime

    from runtime.engine.onnx import CUDA_OPTIONS, OnnxEngine

    reason = OnnxEngine.unavailable(device)
    if reason:
        raise RuntimeError(reason)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    if data is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    providers: list[Any] = [(CUDA, CUDA_OPTIONS | options)] if device == "cuda" else []
    made = onnxruntime.InferenceSession(str(model) if isinstance(model, Path) else model, settings, providers=[*providers, CPU])
    if providers and CUDA not in made.get_providers():
        raise RuntimeError("ONNX Runtime fell back to the CPU")
    return made


def on_device(array: np.ndarray, device: str) -> Any:
    """An OrtValue with the numbers of `array` in the memory of `device`."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device)


def empty_output(made: Any, index: int, device: str) -> Any:
    """An OrtValue for output `index`, whose shape must be fixed."""
    import onnxruntime

    from runtime.engine.onnx import _DTYPES

    node = made.get_outputs()[index]
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(node.shape, _DTYPES[node.type], device)


def clip_for(made: Any, bundle: Any) -> dict[str, np.ndarray]:
    """The bundle's reference clip, as the vision graph takes it."""
    from runtime.engine.onnx import _DTYPES
    from runtime.tools import reference

    (node,) = made.get_inputs()
    return {node.name: reference.clip(bundle).astype(_DTYPES[node.type], copy=False)}


def run_bound(made: Any, binding: Any) -> None:
    """Run, and wait for what stays on the device."""
    made.run_with_iobinding(binding)
    binding.synchronize_outputs()


def milliseconds(run: Callable[[], Any], rounds: int, warm: int = 3) -> float:
    """Median over rounds; each run must end with its result on the host or a synchronised device."""
    for _ in range(warm):
        run()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return 1000 * median(spent)
