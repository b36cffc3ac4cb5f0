"""ONNX Runtime: the engine that runs everywhere. CPU, or CUDA where the GPU wheel and a device are present.

The state of a graph is kept in OrtValues on the device; each is bound as input and as output of a run, and ONNX Runtime's
ScatterElements/TensorScatter then update it in place, without a copy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle import DECODER, DECODER_BATCH, Bundle
from runtime.core.errors import EngineError, missing_package
from runtime.engine import cuda
from runtime.engine.protocol import EngineOptions, TensorSpec, check_available, check_feeds

if TYPE_CHECKING:
    import onnxruntime

_DTYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}

# By default ONNX Runtime lets fp32 products drop to TF32, ten bits of mantissa, and allocates memory in powers of two: at 0.5B 11.0 GB for
# a clip's features where 8.3 GB are as fast (benchmarks/RESULTS.md).
CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}

# x86 CPUs without VNNI add two int8 products in 16 bits, which saturates (github.com/microsoft/onnxruntime/pull/12088); with this, ONNX Runtime
# widens them first, where the CPU and the weights need it. Only for graphs that quantize activations: ONNX Runtime 1.31 breaks int8 weights
# without zero points under it. runtime/cpp/src/onnx_engine.cpp sets the same.
_EXACT_INT8 = ("session.x64quantprecision", "1")
_QUANTIZES = b"\x22\x0eQuantizeLinear"  # NodeProto.op_type in a serialised model


@dataclass(frozen=True)
class OnnxState:
    """pairs: {input name: output name}; values: {input name: the OrtValue that both are bound to}.

    entries: of the first axis, those that a run sees; None for all.
    """

    pairs: dict[str, str]
    values: dict[str, Any]
    entries: slice | None = None

    def batch_slice(self, start: int, stop: int) -> OnnxState:
        return OnnxState(self.pairs, self.values, slice(start, stop))


class OnnxEngine:
    """One ONNX Runtime session."""

    backend = "onnx"
    takes_bf16, takes_batches = False, True

    def __init__(self, session: onnxruntime.InferenceSession, device: str):
        self.session, self.device = session, device
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            other = "; or pass --backend openvino, which is installed" if importlib.util.find_spec("openvino") else ""
            return f"{missing_package('onnxruntime', 'the onnx backend', 'runtime')}{other}"
        if device not in ("cpu", "cuda"):
            return f"ONNX Runtime runs on cpu and cuda here, not on {device}; --backend openvino has that device"
        if device == "cuda" and not has_cuda_provider():
            return (
                "this onnxruntime has no CUDA provider; the CPU and GPU wheels exclude each other: "
                'pip uninstall onnxruntime, then pip install "st-gridpool[gpu]"'
            )
        return (cuda.no_gpu() or _cuda_fault()) if device == "cuda" else None

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> OnnxEngine:
        if graph in (DECODER, DECODER_BATCH) and bundle.llm.attention == "flash" and options.on("cpu").device != "cuda":
            raise EngineError(
                f"{bundle.path}'s decoder has flash attention, which ONNX Runtime computes on cuda alone: its CPU provider rounds the "
                "scores to float16; pass --device cuda where a GPU is, or export with --attention portable"
            )
        return cls.load(bundle.model(graph), options)

    @classmethod
    def load(
        cls, model: Path | bytes, options: EngineOptions = EngineOptions(), data: Path | None = None, as_written: bool = False
    ) -> OnnxEngine:
        """Load an ONNX file, or a serialised model whose external data are in directory `data`; device "auto" is the CPU.

        as_written: node by node, without ONNX Runtime's optimisations, which would keep float32 copies of float16 weights.
        """
        options = options.on("cpu")
        check_available(cls, options.device)
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = options.threads
        if _contains(model, _QUANTIZES):
            settings.add_session_config_entry(*_EXACT_INT8)
        if as_written:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if data is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
        providers = [("CUDAExecutionProvider", CUDA_OPTIONS)] if options.device == "cuda" else []
        source = str(model) if isinstance(model, Path) else model
        try:
            session = onnxruntime.InferenceSession(source, settings, providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            name = model if isinstance(model, Path) else "the model"
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} can't load {name}: {error}") from None
        if providers and providers[0][0] not in session.get_providers():
            raise EngineError(
                "ONNX Runtime fell back to the CPU: no usable CUDA device; `python -m runtime doctor` says what is missing"
            )
        return cls(session, options.device)

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> OnnxState:
        import onnxruntime

        def zeros(spec: TensorSpec) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(spec.zeros(batch), self.device)

        values = {spec.name: zeros(spec) for spec in self.inputs if spec.name in pairs}
        return OnnxState(dict(pairs), values)

    def run(self, feeds: Mapping[str, np.ndarray], state: OnnxState | None = None) -> dict[str, np.ndarray]:
        state = state or OnnxState({}, {})
        check_feeds(self.inputs, feeds, frozenset(state.pairs))
        bound = set(state.pairs.values())
        wanted = [spec.name for spec in self.outputs if spec.name not in bound]
        try:
            return self._run_bound(feeds, state, wanted)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"ONNX Runtime failed on {self.device}: {error}") from None

    def close(self) -> None:
        del self.session

    def _run_bound(self, feeds: Mapping[str, np.ndarray], state: OnnxState, wanted: list[str]) -> dict[str, np.ndarray]:
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, output in state.pairs.items():
            if state.entries is None:
                binding.bind_ortvalue_input(name, state.values[name])
                binding.bind_ortvalue_output(output, state.values[name])
            else:
                buffer = _buffer_of(state.values[name], state.entries, self.device)
                binding.bind_input(name, *buffer)
                binding.bind_output(output, *buffer)
        for name in wanted:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[len(state.pairs) :]  # in the order of binding: state first
        return {name: value.numpy() for name, value in zip(wanted, outputs, strict=True)}


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is the one for NVIDIA GPUs, with or without such a GPU here."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


# y = x + x of one float, as onnx.helper.make_model serialises it: it must run before a device counts as usable
_ADDITION = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@functools.cache
def _cuda_fault() -> str | None:
    """Why the CUDA provider can't compute on the GPU of this machine, tried once per process; None where it can."""
    import onnxruntime

    # CUDA and cuDNN of NVIDIA's wheels, in site-packages, where the loader does not look. What is not found there is printed, to stdout;
    # it may still come from elsewhere.
    if hasattr(onnxruntime, "preload_dlls"):  # 1.21 and newer
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    doctor = "`python -m runtime doctor` says what is missing"
    try:
        session = onnxruntime.InferenceSession(_ADDITION, settings, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        if "CUDAExecutionProvider" not in session.get_providers():
            return f"ONNX Runtime {onnxruntime.__version__} falls back to the CPU: CUDA or cuDNN does not load; {doctor}"
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # ONNX Runtime has no common base class for its errors
        return f"CUDA does not start in ONNX Runtime {onnxruntime.__version__}: {error}; {doctor}"
    return None


def _contains(model: Path | bytes, part: bytes) -> bool:
    if isinstance(model, bytes):
        return part in model
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(part) >= 0
    except (OSError, ValueError):  # missing or empty; ONNX Runtime says what is wrong with it
        return False


def _buffer_of(value: Any, entries: slice, device: str) -> tuple[str, int, np.dtype, list[int], int]:
    """The arguments that bind `entries` of a buffer's first axis in place: device, its number, dtype, shape, address."""
    shape, dtype = value.shape(), _DTYPES[value.data_type()]
    stride = int(np.prod(shape[1:])) * dtype.itemsize
    return device, 0, dtype, [entries.stop - entries.start, *shape[1:]], value.data_ptr() + entries.start * stride


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    if node.type not in _DTYPES:
        raise EngineError(f"{node.name} is {node.type}, which this runtime does not support")
    return TensorSpec(node.name, _DTYPES[node.type], shape)
