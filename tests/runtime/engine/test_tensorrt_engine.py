"""The binding logic of the TensorRT engines, on a stand-in for the GPU: host memory for device memory and NumPy for kernels.

What a real GPU does with these calls is not shown here; that the right address, shape and order reach it is.
"""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from tensorrt_on_host import BF16, FLOAT, INT64, Engine, Gpu, Module, double

from runtime.core.errors import EngineError
from runtime.engine import trt_api as trt
from runtime.engine.tensorrt import TensorRTEngine


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "load", lambda backend: Module)
    monkeypatch.setattr(trt, "last_error", lambda backend: "broken")


def static() -> tuple[TensorRTEngine, Engine, Gpu]:
    engine, gpu = Engine({"x": ("INPUT", FLOAT, (3, 4)), "y": ("OUTPUT", FLOAT, (3, 4))}, double), Gpu()
    return TensorRTEngine(engine, gpu), engine, gpu


def dynamic() -> tuple[TensorRTEngine, Engine, Gpu]:
    tensors = {"x": ("INPUT", FLOAT, (-1, 4)), "y": ("OUTPUT", FLOAT, None)}
    engine, gpu = Engine(tensors, double, maximum={"x": (6, 4)}), Gpu()
    return TensorRTEngine(engine, gpu, {"x": ["S", 4]}), engine, gpu


def counter(aliases: dict | None = None) -> tuple[TensorRTEngine, Engine, Gpu]:
    """A cache to which every run adds x; y is the cache as it was before."""

    def step(arrays: dict[str, np.ndarray]) -> None:
        arrays["y"][...] = arrays["past"]
        arrays["present"][...] = arrays["past"] + arrays["x"]

    tensors = {name: ("INPUT", FLOAT, (2,)) for name in ("x", "past")} | {
        name: ("OUTPUT", FLOAT, (2,)) for name in ("y", "present")
    }
    engine, gpu = Engine(tensors, step, aliases=aliases), Gpu()
    return TensorRTEngine(engine, gpu), engine, gpu


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_specs_carry_the_names_of_dynamic_dimensions() -> None:
    engine, *_ = dynamic()
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [("x", np.dtype(np.float32), ("S", 4))]


def test_a_dtype_that_numpy_lacks_is_refused() -> None:
    with pytest.raises(EngineError, match="x is BF16"):
        TensorRTEngine(Engine({"x": ("INPUT", BF16, (1,))}, double), Gpu())


def test_results_are_right_and_buffers_are_reused() -> None:
    engine, _, gpu = static()
    first = engine.run({"x": array(3, 4)})["y"]
    buffers = set(gpu.memory)
    second = engine.run({"x": array(3, 4) + 1})["y"]
    np.testing.assert_array_equal(first, 2 * array(3, 4))  # the second run did not write into the first's result
    np.testing.assert_array_equal(second, 2 * (array(3, 4) + 1))
    assert set(gpu.memory) == buffers and len(buffers) == 2


def test_an_array_that_is_not_contiguous_is_fed_in_its_order() -> None:
    engine, *_ = static()
    transposed = array(4, 3).T
    np.testing.assert_array_equal(engine.run({"x": transposed})["y"], 2 * transposed)


def test_a_static_graph_is_captured_once_after_its_first_run() -> None:
    engine, _, gpu = static()
    for shift in range(3):
        np.testing.assert_array_equal(engine.run({"x": array(3, 4) + shift})["y"], 2 * (array(3, 4) + shift))
    assert gpu.calls == ["synchronize", "capture", "replay", "synchronize", "replay", "synchronize"]
    engine.close()
    assert gpu.calls[-1] == "drop" and not gpu.memory


def test_where_capture_fails_runs_go_on_and_it_is_logged_once(capsys: pytest.CaptureFixture) -> None:
    engine, context, gpu = static()
    gpu.fails_to_capture = True
    for _ in range(3):
        np.testing.assert_array_equal(engine.run({"x": array(3, 4)})["y"], 2 * array(3, 4))
    assert gpu.calls.count("capture") == 1 and "replay" not in gpu.calls and context.runs == 3
    assert capsys.readouterr().err.count("cudaStreamEndCapture") == 1


def test_dynamic_shapes_use_one_buffer_of_the_largest_and_no_cuda_graph() -> None:
    engine, _, gpu = dynamic()
    for rows in (1, 6, 2):
        np.testing.assert_array_equal(engine.run({"x": array(rows, 4)})["y"], 2 * array(rows, 4))
    assert sorted(ctypes.sizeof(buffer) for buffer in gpu.memory.values()) == [96, 96]
    assert "capture" not in gpu.calls


def test_more_than_the_profile_takes_is_refused_before_the_launch() -> None:
    engine, context, _ = dynamic()
    with pytest.raises(EngineError, match=r"\[7, 4\].*\[6, 4\]"):
        engine.run({"x": array(7, 4)})
    assert context.runs == 0


@pytest.mark.parametrize("feeds", [{}, {"z": array(3, 4)}, {"x": array(3, 5)}, {"x": array(3, 4).astype(np.float64)}])
def test_wrong_inputs_are_refused_before_the_launch(feeds: dict[str, np.ndarray]) -> None:
    engine, context, _ = static()
    with pytest.raises(EngineError):
        engine.run(feeds)
    assert context.runs == 0


def test_a_state_starts_at_zero_and_its_two_buffers_swap() -> None:
    engine, context, _ = counter()
    state = engine.new_state({"past": "present"})
    seen = []
    for step in range(3):
        result = engine.run({"x": np.full(2, step + 1, np.float32)}, state)
        assert result.keys() == {"y"}
        seen.append((result["y"].tolist(), context.addresses["past"], context.addresses["present"]))
    assert [values for values, _, _ in seen] == [[0, 0], [1, 1], [3, 3]]
    assert seen[0][1:] == seen[1][2:0:-1] == seen[2][1:] and seen[0][1] != seen[0][2]


def test_a_state_is_one_buffer_where_tensorrt_declares_the_alias() -> None:
    engine, context, _ = counter(aliases={"present": "past"})
    state = engine.new_state({"past": "present"})
    results = [engine.run({"x": np.ones(2, np.float32)}, state)["y"].tolist() for _ in range(3)]
    assert results == [[0, 0], [1, 1], [2, 2]]
    assert context.addresses["past"] == context.addresses["present"]


def test_two_conversations_do_not_mix_and_a_dropped_one_is_freed() -> None:
    engine, _, gpu = counter()
    one, two = engine.new_state({"past": "present"}), engine.new_state({"past": "present"})
    engine.run({"x": np.ones(2, np.float32)}, one)
    assert engine.run({"x": np.ones(2, np.float32)}, two)["y"].tolist() == [0, 0]
    assert engine.run({"x": np.ones(2, np.float32)}, one)["y"].tolist() == [1, 1]
    before = len(gpu.memory)
    del two
    gc.collect()
    assert len(gpu.memory) == before - 2


@pytest.mark.parametrize(("dtype", "shape"), [(INT64, (2,)), (FLOAT, (3,))])
def test_a_state_of_two_shapes_or_dtypes_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    tensors = {"past": ("INPUT", FLOAT, (2,)), "present": ("OUTPUT", dtype, shape)}
    engine = TensorRTEngine(Engine(tensors, double), Gpu())
    with pytest.raises(EngineError, match=rf"past \(2,\) and present \({shape[0]},\)"):
        engine.new_state({"past": "present"})


def test_an_engine_without_a_context_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine: None)
    with pytest.raises(EngineError, match="broken"):
        static()


def test_an_output_whose_shape_depends_on_values_is_refused() -> None:
    with pytest.raises(EngineError, match="output y"):
        TensorRTEngine(Engine({"x": ("INPUT", FLOAT, (3, 4)), "y": ("OUTPUT", FLOAT, (-1, 4))}, double), Gpu())


def test_a_buffer_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context, _ = static()
    monkeypatch.setattr(context, "set_tensor_address", lambda name, address: name != "y")
    with pytest.raises(EngineError, match=r"of y: broken"):
        engine.run({"x": array(3, 4)})


def test_dimensions_without_a_recorded_name_get_one_each() -> None:
    tensors = {"x": ("INPUT", FLOAT, (-1, 4)), "y": ("OUTPUT", FLOAT, None)}
    engine = TensorRTEngine(Engine(tensors, double, maximum={"x": (6, 4)}), Gpu())
    assert [spec.shape for spec in engine.inputs] == [("x.0", 4)]


def test_a_conversation_before_the_first_run_alone_has_warmed_the_engine_up() -> None:
    """What a first run allocates is there after one with a state too."""
    engine, _, gpu = counter()
    engine.run({"x": np.ones(2, np.float32)}, engine.new_state({"past": "present"}))
    engine.run({"x": np.ones(2, np.float32), "past": np.ones(2, np.float32)})
    assert gpu.calls.count("capture") == 1


def test_a_failed_launch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context, _ = static()
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(EngineError, match="broken"):
        engine.run({"x": array(3, 4)})
