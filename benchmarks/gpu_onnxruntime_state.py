"""Does a decode step touch only its own row of the KV cache, and what does the way in and out of the GPU cost?

A step writes the cache where it is, into the buffer that it reads. That it leaves the other rows as they are is checked with
known numbers in all rows that it must not touch. That nothing is copied shows in the time: the same decoder is timed with caches
of very different capacity, at one length, and only a copy could tell them apart. (Capacity is the third axis of the cache's
inputs; no weight depends on it.)

S prompt positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gpu_onnxruntime_report import Report
from gpu_onnxruntime_sessions import clip_for, empty_output, milliseconds, on_device, run_bound, session
from harness import log, table

LENGTH = 64  # positions in the cache before the step that is timed
POISON = 1024.0  # in rows that a step must not touch, and in the one that it must write


def state_of(args: argparse.Namespace, report: Report) -> None:
    for directory in args.bundles:
        report.attempt(f"KV cache of {directory.name}", lambda d=directory: _cache(d, args, report))
        if not directory.name.endswith("-standard"):  # the decoder's variant: its vision graph is the other bundle's
            report.attempt(f"binding of {directory.name}", lambda d=directory: _vision_feeds(d, args, report))


def _cache(directory: Path, args: argparse.Namespace, report: Report) -> None:
    from runtime.bundle import DECODER, Bundle
    from runtime.engine.onnx import OnnxEngine

    bundle = Bundle.open(directory)
    path = bundle.model(DECODER)
    own = _capacity(path)
    rows, numbers = [], {}
    for capacity in (own, max(2 * own, int(args.cache_gb * 1e9 / _position_bytes(path)))):
        log(f"a cache of {capacity:,} positions, {directory.name}")
        made = session(with_capacity(path, capacity), args.device, data=path.parent)
        step = _Step(OnnxEngine(made, args.device), bundle)
        measured = {
            "cache MB": step.bytes / 1e6,
            "rows kept": step.keeps_rows(),
            "step ms": milliseconds(step.run, args.rounds * 4),
            "all bound on the device, ms": milliseconds(step.bound_run(), args.rounds * 4),
        }
        numbers[capacity] = measured
        rows.append(
            [f"{capacity:,}", *("yes" if value is True else "**no**" if value is False else value for value in measured.values())]
        )
        del step, made
    made = session(path, args.device)
    through_host = milliseconds(_through_host(made, _Step(OnnxEngine(made, args.device), bundle)), args.rounds)
    numbers["through the host ms"] = through_host
    columns = (
        "positions",
        "cache MB",
        "other rows kept",
        "decode step ms",
        "inputs and logits bound on the device, ms",
    )
    text = (
        f"{table(columns, rows)}\n\nThe cache of {own:,} positions fed and fetched as NumPy arrays: {through_host:.3g} ms a step."
    )
    report.section(f"KV cache of {directory.name}, {LENGTH} positions read", text, numbers)
    if not all(measured["rows kept"] for measured in numbers.values() if isinstance(measured, dict)):
        report.failed(f"verdict on the KV cache of {directory.name}", "a step does not write its row, or writes others")


class _Step:
    """One decode step at LENGTH, over and over: it writes the same row of the cache each time."""

    def __init__(self, engine: Any, bundle: Any):
        from runtime.llm.decoder import cache_pairs, decoder_feeds

        self.engine, self.pairs = engine, cache_pairs(engine.inputs)
        self.state = engine.new_state(self.pairs)
        self.bytes = sum(value.tensor_size_in_bytes() for value in self.state.values.values())
        dtype = next(spec.dtype for spec in engine.inputs if spec.name == "inputs_embeds")
        rng, width = np.random.default_rng(0), bundle.manifest.hidden_size
        engine.run(decoder_feeds(rng.normal(0, width**-0.5, (1, LENGTH, width)).astype(dtype), [0]), self.state)
        self.feeds = decoder_feeds(rng.normal(0, width**-0.5, (1, 1, width)).astype(dtype), [LENGTH])

    def run(self) -> np.ndarray:
        return self.engine.run(self.feeds, self.state)["logits"]

    def keeps_rows(self) -> bool:
        """Whether a step writes its row in every tensor of the cache, and no other row."""
        before = {}
        for name, value in self.state.values.items():
            rows = value.numpy().copy()  # [1, heads, positions, width]
            rows[:, :, LENGTH:] = POISON
            before[name] = rows[:, :, :LENGTH].copy()
            value.update_inplace(rows)
        self.run()
        for name, value in self.state.values.items():
            rows = value.numpy()
            written = rows[:, :, LENGTH]
            if not np.array_equal(rows[:, :, :LENGTH], before[name]) or not (rows[:, :, LENGTH + 1 :] == POISON).all():
                return False
            if (written == POISON).any() or not np.isfinite(written).all():
                return False
        return True

    def bound_run(self) -> Any:
        """A step whose inputs are on the device already and whose logits stay there."""
        device = self.engine.device
        binding = self._binding(device)
        held = empty_logits(self.engine, device)
        binding.bind_ortvalue_output("logits", held)

        def run() -> None:
            run_bound(self.engine.session, binding)

        return run

    def _binding(self, device: str = "cpu") -> Any:
        binding = self.engine.session.io_binding()
        self.held = {name: on_device(array, device) for name, array in self.feeds.items()}  # a binding does not keep them
        for name, value in self.held.items():
            binding.bind_ortvalue_input(name, value)
        for name, output in self.pairs.items():
            binding.bind_ortvalue_input(name, self.state.values[name])
            binding.bind_ortvalue_output(output, self.state.values[name])
        return binding


def empty_logits(engine: Any, device: str) -> Any:
    """An OrtValue [1, 1, V] for the logits of one step."""
    import onnxruntime

    spec = next(spec for spec in engine.outputs if spec.name == "logits")
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype, device)


def _through_host(made: Any, step: _Step) -> Any:
    feeds = step.feeds | {name: value.numpy() for name, value in step.state.values.items()}
    return lambda: made.run(None, feeds)


def _vision_feeds(directory: Path, args: argparse.Namespace, report: Report) -> None:
    """The clip fed as it is by the engine, and from device memory with the tokens left there."""
    from runtime.bundle import VISION, Bundle
    from runtime.engine.onnx import OnnxEngine

    bundle = Bundle.open(directory)
    made = session(bundle.model(VISION), args.device)
    feeds = clip_for(made, bundle)
    engine = OnnxEngine(made, args.device)
    ((name, clip),) = feeds.items()
    binding, source, target = made.io_binding(), on_device(clip, args.device), empty_output(made, 0, args.device)
    binding.bind_ortvalue_input(name, source)
    binding.bind_ortvalue_output(made.get_outputs()[0].name, target)
    numbers = {
        "clip MB": clip.nbytes / 1e6,
        "from NumPy ms": milliseconds(lambda: engine.run(feeds), args.rounds),
        "on the device ms": milliseconds(lambda: run_bound(made, binding), args.rounds),
        "upload ms": milliseconds(lambda: source.update_inplace(clip), args.rounds),
    }
    report.section(f"feeding the clip, {directory.name}", table(tuple(numbers), [list(numbers.values())]), numbers)


def with_capacity(path: Path, capacity: int) -> bytes:
    """The decoder at `path`, whose cache has `capacity` positions; weights stay in its external data."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[2].dim_value = capacity
    del model.graph.value_info[:]
    return model.SerializeToString()


def _capacity(path: Path) -> int:
    return _cache_shapes(path)[0][2]


def _position_bytes(path: Path) -> int:
    """Bytes of one position in all tensors of the cache."""
    return sum(shape[0] * shape[1] * shape[3] * size for *shape, size in _cache_shapes(path))


def _cache_shapes(path: Path) -> list[list[int]]:
    """[1, heads, positions, width, bytes of a value] of every tensor of the cache."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    tensors = [value.type.tensor_type for value in model.graph.input if value.name.startswith("past_key_values.")]
    size = {onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.FLOAT: 4}
    return [[dim.dim_value or 1 for dim in tensor.shape.dim] + [size[tensor.elem_type]] for tensor in tensors]
