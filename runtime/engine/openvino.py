"""OpenVINO: Intel and Arm CPUs, Intel GPUs and NPUs, on the same ONNX files.

A CPU runs the vision half frame by frame (`vision.loop.onnx`), the GPU and the NPU run it at once; local functions, which
OpenVINO does not read, are inlined first. The LLM half must be the portable spelling: of the standard one OpenVINO 2026.4 drops
`position_ids`.

A state is one host buffer a tensor, which the graph only reads: OpenVINO guards an input from being updated in place by copying all
of it, in and out again, at every step. So the rows that a run adds leave the graph alone and are written where they belong here
(`_rows_out`; a run without a State returns those rows), and inside they are scattered into the copy of the read part that is made
anyway. Its own stateful form was tried and is slower without AMX: prefill in chunks 10 times, in one go 1.5 times.
On a CPU the cache is held in what OpenVINO computes in, fp32 or bf16: it would convert all of another at every step.

Results are fp32's unless `EngineOptions.bf16` allows bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import BATCH, DECODER, DECODER_BATCH, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.bundle.tensors import MASK, PAST, POSITIONS, PRESENT
from runtime.core.errors import EngineError, missing_package
from runtime.engine.openvino_memory import large_blocks_apart, released_after
from runtime.engine.protocol import EngineOptions, TensorSpec, check_feeds

_READ_STEP = 32  # rows: OpenVINO makes its kernels anew for a shape that it has not met, 12 ms a step at 0.5B size
_DEVICES = ("cpu", "gpu", "npu")


@cache
def core() -> Any:
    """The `openvino.Core` of this process, never dropped; ImportError where there is no OpenVINO.

    The CPU plugin of each Core gives the thread an alternate signal stack and takes it back when it goes. Of two that go in the
    order in which they came the second restores the first's, which is unmapped by then, and the next signal (SIGTERM, or SIGCHLD
    under a handler) kills the process. So there is one.
    """
    import openvino

    large_blocks_apart()
    return openvino.Core()


@dataclass(frozen=True)
class OpenVINOState:
    """pairs: {input name: output name}; request: has each input bound to one of `buffers`, which holds the whole tensor.

    rows: which entries of the first axis a run sees, None for all.
    """

    pairs: dict[str, str]
    request: Any
    buffers: dict[str, np.ndarray]
    rows: slice | None = None

    def batch_slice(self, start: int, stop: int) -> OpenVINOState:
        """The same buffers, of which a run sees entries start … stop - 1 of the first axis as its batch."""
        return OpenVINOState(self.pairs, self.request, self.buffers, slice(start, stop))


class OpenVINOEngine:
    """One compiled model."""

    backend = "openvino"
    takes_bf16 = True

    def __init__(self, compiled: Any, device: str):
        self._compiled, self.device = compiled, device
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        try:
            import openvino
        except ImportError:
            return str(missing_package("openvino", "backend openvino", "openvino"))
        if device.partition(".")[0] not in _DEVICES:
            return f"OpenVINO runs on {', '.join(_DEVICES)} (gpu.1 for the second), not on {device}"
        devices = [name.lower() for name in core().available_devices]
        if device not in devices and f"{device}.0" not in devices:
            return f"OpenVINO {openvino.__version__} finds no device {device} here, but {', '.join(devices)}"
        return None

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> OpenVINOEngine:
        if graph in (DECODER, DECODER_BATCH) and bundle.manifest.llm.get("attention") == "standard":
            raise EngineError(
                f"openvino can't run {bundle.path}'s decoder of the standard spelling; export with --attention portable"
            )
        return cls.load(bundle.model(graph), options)

    @classmethod
    def load(cls, model: Path, options: EngineOptions = EngineOptions()) -> OpenVINOEngine:
        """Compile an ONNX file for `options.device`, the CPU where none is named."""
        options = options.on("cpu")
        reason = cls.unavailable(options.device)
        if reason:
            raise EngineError(f"backend openvino can't run here: {reason}")
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if options.device == "cpu":
            settings["INFERENCE_PRECISION_HINT"] = "bf16" if options.bf16 else "f32"
            if options.threads:
                settings["INFERENCE_NUM_THREADS"] = options.threads
        elif options.bf16:
            raise EngineError(f"bf16 is a choice of OpenVINO's CPU; on {options.device} leave it out")
        try:
            with released_after(model.parent):
                network = core().read_model(_readable(model))
                _rows_out(network)
                if options.device == "cpu":
                    network = _state_held_in(network, openvino.Type.bf16 if options.bf16 else openvino.Type.f32)
                compiled = core().compile_model(network, options.device.upper(), settings)
            return cls(compiled, options.device)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {openvino.__version__} can't load {model}: {_last_line(error)}") from None

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> OpenVINOState:
        """batch: entries of a first axis that the graph leaves open."""
        buffers = {spec.name: spec.zeros(batch) for spec in self.inputs if spec.name in pairs}
        state = OpenVINOState(dict(pairs), self._compiled.create_infer_request(), buffers)
        self._bind(state, slice(None))
        return state

    def run(self, feeds: Mapping[str, np.ndarray], state: OpenVINOState | None = None) -> dict[str, np.ndarray]:
        import openvino

        pairs = state.pairs if state else {}
        check_feeds(self.inputs, feeds, frozenset(pairs))
        request = state.request if state else self._request
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # alive until the run has ended
        if state:
            arrays[MASK] = _lengthened(arrays[MASK], next(iter(state.buffers.values())).shape[2])
        held = set(pairs.values())
        try:
            if state and state.rows:
                self._bind(state, state.rows)
            for name, array in arrays.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=array.size > 0))
            request.infer(share_outputs=True)  # else the result is a copy of every output
            results = {spec.name: request.get_tensor(spec.name).data for spec in self.outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on {self.device}: {_last_line(error)}") from None
        for name, buffer in state.buffers.items() if state else ():
            seen = buffer[state.rows] if state and state.rows else buffer
            for entry, (rows, added) in enumerate(zip(feeds[POSITIONS], results[pairs[name]], strict=True)):
                seen[entry, :, rows[0] : rows[0] + len(rows)] = added
        return {name: result.copy() for name, result in results.items() if name not in held}

    def close(self) -> None:
        del self._request, self._compiled

    def _bind(self, state: OpenVINOState, rows: slice) -> None:
        import openvino

        for name, buffer in state.buffers.items():
            seen = buffer[rows]
            state.request.set_tensor(name, openvino.Tensor(seen, list(seen.shape), self._compiled.input(name).element_type))


def _lengthened(mask: np.ndarray, capacity: int) -> np.ndarray:
    """The mask [B, P] with rows that are not attended to behind it, up to the next step."""
    read = min(-(-mask.shape[1] // _READ_STEP) * _READ_STEP, capacity)
    return np.pad(mask, ((0, 0), (0, max(0, read - mask.shape[1]))))


def _readable(path: Path) -> Path | bytes:
    """The file, or where it has local functions the model with them inlined and its weights inside."""
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise missing_package("onnx", "reading a graph with local functions in OpenVINO", "runtime") from None
    model = read_graph(path)
    if not model.functions:
        return path
    model = onnx.inliner.inline_local_functions(model)
    onnx.load_external_data_for_model(model, str(path.parent))
    try:
        return model.SerializeToString()
    except ValueError:  # protobuf's limit of 2 GB
        raise EngineError(f"{path} is too large to be inlined for OpenVINO; export with --split") from None


def _state_held_in(network: Any, held: Any) -> Any:
    """State tensors as ports of the type that OpenVINO computes in; NumPy has no bf16 and holds its bits as float16."""
    from openvino.preprocess import PrePostProcessor

    ports = [port for port in [*network.inputs, *network.outputs] if _is_state(port) and port.element_type != held]
    if not ports:
        return network
    processor = PrePostProcessor(network)
    for port in ports:
        name = port.get_any_name()
        side = processor.input(name) if name.startswith(PAST) else processor.output(name)
        side.tensor().set_element_type(held)
    return processor.build()


def _rows_out(network: Any) -> None:
    """Let each state be read, sliced to the rows in use, and only then updated; its output is the rows that the run adds.

    [B, K, M, d] -> Slice -> ScatterElements -> attention, and [B, K, S, d] out, in place of
    [B, K, M, d] -> ScatterElements -> Slice -> attention, and [B, K, M, d] out.
    An entry of a batch that sits a step out may have its row behind those that are read; inside it is scattered into the last of them.
    """
    from openvino import opset13 as ops

    for result in network.get_results():
        update = result.input_value(0).get_node()
        if update.get_type_name() != "ScatterElementsUpdate" or not _is_state(result.output(0)):
            continue
        (read,) = (to for to in update.output(0).get_target_inputs() if to.get_node().get_type_name() == "Slice")
        state, rows, part = update.input_value(0), update.input_value(2), read.get_node().output(0)
        names = update.output(0).get_names()
        for to in part.get_target_inputs():
            to.replace_source_output(update.output(0))
        if state.partial_shape[0].is_dynamic:
            index, last = update.input_value(1), read.get_node().input_value(2)
            last = ops.convert(ops.subtract(last, ops.constant(1, last.element_type)), index.element_type)
            update.input(1).replace_source_output(ops.minimum(index, last).output(0))
        read.replace_source_output(state)
        update.input(0).replace_source_output(part)
        result.input(0).replace_source_output(rows)
        update.output(0).get_tensor().set_names(set())
        rows.get_tensor().set_names(names)
    network.validate_nodes_and_infer_types()


def _is_state(port: Any) -> bool:
    return port.get_any_name().startswith((PAST, PRESENT))


def _spec(port: Any) -> TensorSpec:
    """OpenVINO keeps no names of dynamic dimensions: each gets one of its own, but the first axis, which is a batch's."""
    name = port.get_any_name()
    names = (f"{name}.{axis}" if axis else BATCH for axis in range(len(port.partial_shape)))
    shape = tuple(own if dim.is_dynamic else dim.get_length() for own, dim in zip(names, port.partial_shape, strict=True))
    return TensorSpec(name, np.dtype(port.element_type.to_dtype()), shape)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
