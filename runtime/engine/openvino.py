"""OpenVINO: Intel and Arm CPUs, Intel GPUs and NPUs, on the same ONNX files.

Local functions, which OpenVINO does not read, are inlined first. The decoder must be the portable variant: OpenVINO 2026.4 drops
`position_ids` of the standard one.

A state is one host buffer per tensor, which the graph only reads: OpenVINO protects an input from being updated in place by copying
all of it, in and out again, at every step. So only the rows that a run adds leave the graph, and are written to the buffer here
(`_output_new_rows`; a run without a State returns those rows); inside they are scattered into the copy of the read part that is made
anyway. OpenVINO's stateful form was tried and is slower without AMX: prefill in chunks 10 times, in one run 1.5 times.
On a CPU the cache has the type that OpenVINO computes in, fp32 or bf16: any other would be converted entirely at every step.

Results are computed in fp32 unless `EngineOptions.bf16` allows bf16.
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
from runtime.bundle.graphs import MASK, PAST, POSITIONS, PRESENT
from runtime.core.errors import EngineError, import_package, missing_package
from runtime.engine.openvino_memory import lower_mmap_threshold, release_mapped_pages
from runtime.engine.protocol import EngineOptions, TensorSpec, check_available, check_feeds

_READ_STEP = 32  # rows: OpenVINO rebuilds its kernels for every new shape, 12 ms a step at 0.5B size


@cache
def core() -> Any:
    """The only `openvino.Core` of this process, never destroyed; ImportError where there is no OpenVINO.

    The CPU plugin of each Core installs an alternate signal stack for the thread and restores the previous one when it is destroyed.
    Of two that are destroyed in the order of their creation, the second restores the first's stack, which is unmapped by then, and the
    next signal (SIGTERM, or SIGCHLD under a handler) kills the process.
    """
    import openvino

    lower_mmap_threshold()
    return openvino.Core()


@dataclass(frozen=True)
class OpenVINOState:
    """pairs: {input name: output name}; request: has each input bound to one of `buffers`.

    entries: of the first axis, those that a run sees; None for all.
    """

    pairs: dict[str, str]
    request: Any
    buffers: dict[str, np.ndarray]
    entries: slice | None = None

    def batch_slice(self, start: int, stop: int) -> OpenVINOState:
        return OpenVINOState(self.pairs, self.request, self.buffers, slice(start, stop))


class OpenVINOEngine:
    """One compiled model."""

    backend = "openvino"
    takes_bf16 = takes_batches = True

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
        devices = [name.lower() for name in core().available_devices]
        if device not in devices and f"{device}.0" not in devices:
            return f"OpenVINO {openvino.__version__} finds no device {device} here, but {', '.join(devices)}"
        return None

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> OpenVINOEngine:
        if graph in (DECODER, DECODER_BATCH) and bundle.llm.attention != "portable":
            raise EngineError(
                f"openvino can't run {bundle.path}'s decoder with {bundle.llm.attention} attention; export with --attention portable"
            )
        return cls.load(bundle.model(graph), options)

    @classmethod
    def load(cls, model: Path, options: EngineOptions = EngineOptions()) -> OpenVINOEngine:
        """Compile an ONNX file for `options.device`; "auto" is the CPU."""
        options = options.on("cpu")
        check_available(cls, options.device)
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if options.device == "cpu":
            settings["INFERENCE_PRECISION_HINT"] = "bf16" if options.bf16 else "f32"
            if options.threads:
                settings["INFERENCE_NUM_THREADS"] = options.threads
        elif options.bf16:
            raise EngineError(f"bf16 is an option of OpenVINO on a CPU; leave it out on {options.device}")
        try:
            with release_mapped_pages(model.parent):
                network = core().read_model(_readable(model))
                _output_new_rows(network)
                if options.device == "cpu":
                    network = _state_typed(network, openvino.Type.bf16 if options.bf16 else openvino.Type.f32)
                compiled = core().compile_model(network, options.device.upper(), settings)
            return cls(compiled, options.device)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {openvino.__version__} can't load {model}: {_last_line(error)}") from None

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> OpenVINOState:
        buffers = {spec.name: spec.zeros(batch) for spec in self.inputs if spec.name in pairs}
        state = OpenVINOState(dict(pairs), self._compiled.create_infer_request(), buffers)
        self._bind(state)
        return state

    def run(self, feeds: Mapping[str, np.ndarray], state: OpenVINOState | None = None) -> dict[str, np.ndarray]:
        import openvino

        state = state or OpenVINOState({}, self._request, {})
        check_feeds(self.inputs, feeds, frozenset(state.pairs))
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # must live until the run has ended
        if state.buffers:
            arrays[MASK] = _padded_mask(arrays[MASK], next(iter(state.buffers.values())).shape[2])
        try:
            if state.entries:
                self._bind(state)
            for name, array in arrays.items():
                state.request.set_tensor(name, openvino.Tensor(array, shared_memory=array.size > 0))
            state.request.infer(share_outputs=True)  # without it every output is copied
            results = {spec.name: state.request.get_tensor(spec.name).data for spec in self.outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on {self.device}: {_last_line(error)}") from None
        for name, buffer in state.buffers.items():
            batch = buffer[state.entries or slice(None)]
            for entry, (rows, added) in enumerate(zip(feeds[POSITIONS], results[state.pairs[name]], strict=True)):
                batch[entry, :, rows[0] : rows[0] + len(rows)] = added
        return {name: result.copy() for name, result in results.items() if name not in state.pairs.values()}

    def close(self) -> None:
        del self._request, self._compiled

    def _bind(self, state: OpenVINOState) -> None:
        import openvino

        for name, buffer in state.buffers.items():
            batch = buffer[state.entries or slice(None)]
            state.request.set_tensor(name, openvino.Tensor(batch, list(batch.shape), self._compiled.input(name).element_type))


def _padded_mask(mask: np.ndarray, capacity: int) -> np.ndarray:
    """The mask [B, P], padded to a multiple of _READ_STEP with rows that are not attended to."""
    read = min(-(-mask.shape[1] // _READ_STEP) * _READ_STEP, capacity)
    return np.pad(mask, ((0, 0), (0, max(0, read - mask.shape[1]))))


def _readable(path: Path) -> Path | bytes:
    """The file; where it has local functions, the serialised model with functions inlined and weights included."""
    import_package("onnx", "reading a graph with local functions in OpenVINO", "runtime")
    import onnx.inliner

    model = read_graph(path)
    if not model.functions:
        return path
    model = onnx.inliner.inline_local_functions(model)
    onnx.load_external_data_for_model(model, str(path.parent))
    try:
        return model.SerializeToString()
    except ValueError:  # protobuf's limit of 2 GB
        raise EngineError(f"{path} is too large to be inlined for OpenVINO; export with --split") from None


def _state_typed(network: Any, dtype: Any) -> Any:
    """Give the state's ports the type that OpenVINO computes in; NumPy has no bf16 and stores its bits as float16."""
    from openvino.preprocess import PrePostProcessor

    ports = [port for port in [*network.inputs, *network.outputs] if _is_state(port) and port.element_type != dtype]
    if not ports:
        return network
    processor = PrePostProcessor(network)
    for port in ports:
        name = port.get_any_name()
        side = processor.input(name) if name.startswith(PAST) else processor.output(name)
        side.tensor().set_element_type(dtype)
    return processor.build()


def _output_new_rows(network: Any) -> None:
    """Slice each state to the rows in use before it is updated, and output only the rows that the run adds.

    [B, K, M, d] -> Slice -> ScatterElements -> attention, output [B, K, S, d], in place of
    [B, K, M, d] -> ScatterElements -> Slice -> attention, output [B, K, M, d].
    A batch entry that is idle in a step may have its row after those that are read; it is then scattered into the last of them.
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
    """OpenVINO keeps no names of dynamic dimensions: a dynamic first axis is the batch, any other gets a unique name."""
    name = port.get_any_name()
    names = (f"{name}.{axis}" if axis else BATCH for axis in range(len(port.partial_shape)))
    shape = tuple(label if dim.is_dynamic else dim.get_length() for label, dim in zip(names, port.partial_shape, strict=True))
    return TensorSpec(name, np.dtype(port.element_type.to_dtype()), shape)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
