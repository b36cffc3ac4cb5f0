"""What ONNX Runtime does with a state that stays where it is, and how it is asked for each: on a graph that is a cache alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from cache_graph import PAIRS, feeds, save_cache_graph
from manifests import bundle_of
from refusal import naming

from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, cuda
from runtime.engine import onnx as onnx_engine
from runtime.engine.onnx import OnnxEngine, OnnxState, _buffer_of, _spec

ROWS = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> OnnxEngine:
    return OnnxEngine.load(save_cache_graph(tmp_path_factory.mktemp("cache") / "m.onnx", 5))


def test_a_state_is_updated_where_it_is(engine):
    state = engine.new_state(PAIRS)
    value = state.values["past_key_values.0.key"]
    assert value.shape() == [1, 1, 5, 2] and not value.numpy().any() and state.pairs == PAIRS and state.entries is None
    address = value.data_ptr()
    first = engine.run(feeds(ROWS[:1], [[0, 1]], 2), state)
    assert set(first) == {"logits"} and first["logits"].tolist() == [[(2 * ROWS[0]).tolist()]]
    second = engine.run(feeds(ROWS[1:2, :1], [[4]], 5), state)["logits"]
    expected = [[1, 2], [3, 4], [0, 0], [0, 0], [5, 6]]
    assert second.tolist() == [[[[2 * a, 2 * b] for a, b in expected]]]
    assert value.numpy().tolist() == [[expected]] and value.data_ptr() == address


@pytest.mark.parametrize(
    ("graph", "attention", "device", "runs"),
    [
        ("llm/decoder", "flash", "cpu", False),
        ("llm/decoder.batch", "flash", "auto", False),
        ("llm/decoder", "flash", "cuda", True),
        ("llm/decoder", "standard", "cpu", True),
        ("vision.loop", "flash", "cpu", True),
    ],
)
def test_a_decoder_with_flash_attention_runs_on_cuda_alone(monkeypatch, graph, attention, device, runs):
    monkeypatch.setattr(OnnxEngine, "load", lambda model, options: (model, options.device))
    bundle, options = bundle_of(f"{graph}.onnx", llm=LLMInfo(1, 1, 1, attention=attention)), EngineOptions(device=device)
    if runs:
        assert OnnxEngine.open(bundle, graph, options) == (Path("b") / f"{graph}.onnx", device)
    else:
        with pytest.raises(EngineError, match=naming("flash", "--device cuda", "--attention portable")):
            OnnxEngine.open(bundle, graph, options)


def test_a_run_may_see_some_entries_of_a_batch(engine):
    state = engine.new_state(PAIRS, batch=4)
    assert state.values["past_key_values.0.key"].shape() == [4, 1, 5, 2]
    part = state.batch_slice(1, 3)
    assert part == OnnxState(PAIRS, state.values, slice(1, 3))
    got = engine.run(feeds(ROWS[:2], [[0, 1], [3, 4]], 5), part)["logits"]
    expected = np.zeros((4, 1, 5, 2), np.float32)
    expected[1, 0, :2], expected[2, 0, 3:] = ROWS[0], ROWS[1]
    np.testing.assert_array_equal(got, 2 * expected[1:3])
    np.testing.assert_array_equal(state.values["past_key_values.0.key"].numpy(), expected)
    got = engine.run(feeds(ROWS[2:], [[1, 0]], 2), state.batch_slice(3, 4))["logits"]
    assert got.tolist() == [[(2 * ROWS[2, ::-1]).tolist()]]


def test_without_a_state_the_cache_is_an_input_and_an_output_like_others(engine):
    cache = np.full((1, 1, 5, 2), 7, np.float32)
    got = engine.run(feeds(ROWS[:1], [[1, 2]], 1) | {"past_key_values.0.key": cache})
    assert set(got) == {"logits", "present.0.key"} and got["logits"].tolist() == [[[[14, 14]]]]
    assert got["present.0.key"].tolist() == [[[[7, 7], [1, 2], [3, 4], [7, 7], [7, 7]]]]


def test_what_fails_inside_is_an_engine_error(engine):
    with pytest.raises(EngineError, match="ONNX Runtime failed on cpu: "):
        engine.run(feeds(ROWS[:1], [[9, 1]], 2), engine.new_state(PAIRS))  # no row 9


def test_an_array_that_is_not_contiguous_is_fed_in_its_order(engine):
    rows = np.arange(4, dtype=np.float32).reshape(2, 2).T[None]
    got = engine.run(feeds(rows, [[0, 1]], 2), engine.new_state(PAIRS))["logits"]
    assert got.tolist() == [[[[0, 4], [2, 6]]]]


@pytest.mark.parametrize(
    ("kind", "dtype", "stride"), [("tensor(float)", np.float32, 2 * 3 * 4), ("tensor(float16)", np.float16, 2 * 3 * 2)]
)
def test_the_entries_of_a_buffer_begin_at_their_own_address(kind, dtype, stride):
    value = SimpleNamespace(shape=lambda: [8, 2, 3], data_ptr=lambda: 1000, data_type=lambda: kind)
    assert _buffer_of(value, slice(3, 5), "cuda") == ("cuda", 0, dtype, [2, 2, 3], 1000 + 3 * stride)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float", "f4"), ("float16", "f2"), ("double", "f8"), ("int64", "i8"), ("int32", "i4"), ("uint8", "u1"), ("bool", "?")],
)
def test_a_tensor_s_type_and_open_sizes(kind, dtype):
    spec = _spec(SimpleNamespace(name="x", type=f"tensor({kind})", shape=[2, "S", None]))
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(dtype), (2, "S", "None"))


class TestCuda:
    """What stands between CUDA and ONNX Runtime, on stand-ins for both."""

    @pytest.fixture
    def unavailable(self, monkeypatch):
        """unavailable(provider, no_gpu, fault) -> what is said of the device cuda."""

        def ask(provider: bool, no_gpu: str | None, fault: str | None) -> str | None:
            monkeypatch.setattr(onnx_engine, "has_cuda_provider", lambda: provider)
            monkeypatch.setattr(cuda, "no_gpu", lambda: no_gpu)
            monkeypatch.setattr(onnx_engine, "_cuda_fault", lambda: fault)
            assert OnnxEngine.unavailable("cpu") is None
            return OnnxEngine.unavailable("cuda")

        return ask

    def test_the_wheel_then_the_gpu_then_the_provider(self, unavailable):
        assert "has no CUDA provider" in unavailable(False, "no GPU", "a fault")
        assert unavailable(True, "no GPU", "a fault") == "no GPU"
        assert unavailable(True, None, "a fault") == "a fault"
        assert unavailable(True, None, None) is None

    @pytest.mark.parametrize(("here", "falls_back"), [(["CUDAExecutionProvider"], False), ([], True)])
    def test_a_session_that_falls_back_to_the_cpu_is_refused(self, unavailable, monkeypatch, here, falls_back):
        import onnxruntime

        class Session(SimpleNamespace):
            def __init__(self, source, settings, providers):
                super().__init__(get_inputs=list, get_outputs=list, get_providers=lambda: [*here, "CPUExecutionProvider"])
                asked.append((source, settings.log_severity_level, providers))

        asked = []
        assert unavailable(True, None, None) is None
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        if falls_back:
            with pytest.raises(EngineError, match="CPU"):
                OnnxEngine.load(Path("m.onnx"), EngineOptions(device="cuda"))
        else:
            assert OnnxEngine.load(Path("m.onnx"), EngineOptions(device="cuda")).device == "cuda"
        assert asked == [
            (
                "m.onnx",
                3,
                [("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}), "CPUExecutionProvider"],
            )
        ]


class TestFault:
    """Whether CUDA computes is asked with a graph of one addition, on a stand-in for the wheel for GPUs."""

    @pytest.fixture
    def wheel(self, monkeypatch):
        """starts: the providers that a session gets; error: what its run raises; asked: what was asked of it, in order."""
        wheel = SimpleNamespace(starts=["CUDAExecutionProvider"], error=None, asked=[], __version__="1.30")

        class Session:
            def __init__(self, model: bytes, settings: SimpleNamespace, providers: list[str]):
                wheel.asked.append(
                    (onnx.load_model_from_string(model).graph.node[0].op_type, settings.log_severity_level, providers)
                )

            def get_providers(self) -> list[str]:
                return [*wheel.starts, "CPUExecutionProvider"]

            def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
                wheel.asked.append((names, feeds["x"].tolist(), feeds["x"].dtype))
                if wheel.error:
                    raise wheel.error
                return [feeds["x"]]

        wheel.SessionOptions, wheel.InferenceSession = SimpleNamespace, Session
        monkeypatch.setitem(sys.modules, "onnxruntime", wheel)
        return wheel

    def test_a_provider_that_starts_and_runs_has_none(self, wheel, capsys):
        wheel.preload_dlls = lambda: (wheel.asked.append("preloaded"), print("libcudnn.so.9 was not found"))
        assert onnx_engine._cuda_fault.__wrapped__() is None
        session = ("Add", 3, ["CUDAExecutionProvider", "CPUExecutionProvider"])
        assert wheel.asked == ["preloaded", session, (None, [1], np.float32)] and capsys.readouterr().out == ""

    def test_a_provider_that_does_not_start_is_not_run(self, wheel):
        wheel.starts = []
        said = onnx_engine._cuda_fault.__wrapped__()
        assert said.startswith("ONNX Runtime 1.30 falls back to the CPU: CUDA or cuDNN does not load; ") and len(wheel.asked) == 1

    def test_a_run_that_fails_is_one(self, wheel):
        wheel.error = RuntimeError("no kernel image")
        assert onnx_engine._cuda_fault.__wrapped__().startswith("CUDA does not start in ONNX Runtime 1.30: no kernel image; ")


def test_a_closed_engine_has_no_session(tmp_path):
    engine = OnnxEngine.load(save_cache_graph(tmp_path / "m.onnx", 3))
    engine.close()
    assert not hasattr(engine, "session") and (engine.backend, engine.takes_bf16) == ("onnx", False)


def test_a_file_that_can_t_be_loaded_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=rf"^ONNX Runtime \S+ can't load {tmp_path}/m\.onnx: "):
        OnnxEngine.load(tmp_path / "m.onnx")
