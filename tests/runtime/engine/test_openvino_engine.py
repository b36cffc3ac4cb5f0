"""OpenVINO: parity of both components, a cache that stays where it is, and what is refused with what to do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from refusal import naming
from transformers import Qwen2Config, Qwen2ForCausalLM

from export.decoder import Decoder
from export.options import ExportOptions
from export.pipeline import export_bundle
from export.surgeon import run_passes
from export.trace import trace_decoder
from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_LOOP, Bundle
from runtime.core.errors import EngineError, UserError
from runtime.engine import EngineOptions, open_engine
from runtime.engine.onnx import OnnxEngine
from runtime.engine.openvino import core
from runtime.llm.decoder import LocalDecoder
from runtime.tools import reference
from runtime.tools.parity import parity

pytest.importorskip("openvino")
from runtime.engine import openvino
from runtime.engine.openvino import OpenVINOEngine


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("openvino") / "fp16"
    options = ExportOptions(out=str(out), split=True, precision="fp16", frames=6, place="before-projector")
    return export_bundle(options).bundle


@pytest.fixture(scope="module")
def decoder_of_40(tmp_path_factory):
    """A decoder whose cache has 40 rows, as of --max-context 40."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    model = trace_decoder(Decoder(Qwen2ForCausalLM(config).eval().requires_grad_(False), 40, "portable"), path, "portable")
    onnx.save(run_passes(model, graph="llm/decoder", directory=path.parent)[0], path)
    return path


class TestParity:
    @pytest.mark.parametrize("which", ["bundle", pytest.param("half_bundle", marks=pytest.mark.slow)])
    def test_both_halves_compute_what_torch_computed(self, request, which):
        report = parity(request.getfixturevalue(which), ["openvino"])
        assert report.ok, report.rows
        assert {row.stage for row in report.rows} >= {"visual_tokens", "llm/prefill", "llm/greedy_ids"}

    def test_a_graph_with_a_function_is_inlined(self, split_bundle):
        engine = OpenVINOEngine.load(split_bundle.model(VISION_COMPRESSOR))
        features = np.random.default_rng(0).standard_normal((16, 9, 9, 128)).astype(np.float32)
        expected = OnnxEngine.load(split_bundle.model(VISION_COMPRESSOR)).run({"features": features})["visual_tokens"]
        np.testing.assert_allclose(engine.run({"features": features})["visual_tokens"], expected, rtol=1e-5, atol=1e-5)

    def test_bf16_is_off_until_asked_for(self, bundle):
        feed = {"pixel_values": reference.clip(bundle)}
        exact = OnnxEngine.load(bundle.model(VISION)).run(feed)["visual_tokens"]

        def error(**options) -> float:
            got = open_engine(bundle, VISION, "openvino", EngineOptions(**options)).run(feed)["visual_tokens"]
            return float(np.abs(got - exact).max() / np.abs(exact).max())

        assert error() < 1e-5
        if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            assert 1e-5 < error(bf16=True) < 5e-2
        else:
            assert error(bf16=True) < 1e-5


class TestState:
    def test_a_step_writes_into_the_buffers_of_its_conversation_and_nowhere_else(self, bundle):
        decoder = LocalDecoder.open(bundle, "openvino")
        first, second = decoder.conversation(), decoder.conversation()
        rng = np.random.default_rng(0)
        prompt = rng.standard_normal((1, 7, bundle.manifest.hidden_size)).astype(np.float32)
        first.extend(prompt)
        name = next(iter(first.state.pairs))
        cache = first.state.buffers[name]
        assert first.state.request.get_tensor(name).data.ctypes.data == cache.ctypes.data
        assert first.state.request.get_tensor(first.state.pairs[name]).shape == [1, *cache.shape[1:2], 7, cache.shape[3]]
        before = cache.copy()
        assert np.abs(before[:, :, :7]).min(axis=-1).all() and not before[:, :, 7:].any()
        assert not second.state.buffers[name].any()
        first.extend(prompt[:, :1])
        np.testing.assert_array_equal(cache[:, :, :7], before[:, :, :7])
        assert cache[:, :, 7].any() and not cache[:, :, 8:].any()

    def test_conversations_take_turns(self, bundle):
        prompts = np.random.default_rng(1).standard_normal((2, 1, 9, bundle.manifest.hidden_size)).astype(np.float32)
        expected = [LocalDecoder.open(bundle, "onnx").conversation().extend(prompt) for prompt in prompts]
        decoder = LocalDecoder.open(bundle, "openvino")
        turns = [decoder.conversation(), decoder.conversation()]
        for part in (slice(0, 4), slice(4, 9)):
            got = [turn.extend(prompt[:, part]) for turn, prompt in zip(turns, prompts, strict=True)]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    def test_in_bf16_the_cache_takes_half_the_memory_and_holds_the_same(self, bundle):
        prompt = np.random.default_rng(2).standard_normal((1, 40, bundle.manifest.hidden_size)).astype(np.float32)
        exact, rounded = (LocalDecoder.open(bundle, "openvino", EngineOptions(bf16=bf16)).conversation() for bf16 in (False, True))
        sizes = [sum(array.nbytes for array in turn.state.buffers.values()) for turn in (exact, rounded)]
        assert sizes[0] == 2 * sizes[1]
        for part in (slice(0, 32), slice(32, 39), slice(39, 40)):
            expected, got = exact.extend(prompt[:, part]), rounded.extend(prompt[:, part])
            assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
        name = next(iter(exact.state.pairs))
        held = (rounded.state.buffers[name].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(held, exact.state.buffers[name], atol=0.05 * np.abs(held).max())

    def test_rows_are_written_where_the_positions_say(self, bundle):
        """Also behind a conversation that was set back, as the server's slots are."""
        rng = np.random.default_rng(3)
        first, second = rng.standard_normal((2, 1, 12, bundle.manifest.hidden_size)).astype(np.float32)
        turn, expected = LocalDecoder.open(bundle, "openvino").conversation(), LocalDecoder.open(bundle, "onnx").conversation()
        turn.extend(first)
        turn.length = 5
        expected.extend(first[:, :5])
        np.testing.assert_allclose(turn.extend(second), expected.extend(second), rtol=1e-4, atol=1e-4)

    def test_steps_read_up_to_the_next_32_rows_and_never_past_the_cache(self, decoder_of_40):
        """Kernels are made anew for every shape, so steps share a few; what is read too much is masked."""
        pairs = {f"past_key_values.0.{part}": f"present.0.{part}" for part in ("key", "value")}
        engine, expected = OpenVINOEngine.load(decoder_of_40), OnnxEngine.load(decoder_of_40)
        state, reference_state = engine.new_state(pairs), expected.new_state(pairs)
        rows = np.random.default_rng(4).standard_normal((1, 40, 32)).astype(np.float32)
        for start, stop, read in ((0, 30, 32), (30, 31, 32), (31, 32, 32), (32, 33, 40), (33, 40, 40)):
            feeds = {
                "inputs_embeds": rows[:, start:stop],
                "position_ids": np.arange(start, stop)[None],
                "attention_mask": np.ones((1, stop), np.int64),
            }
            got = engine.run(feeds, state)["logits"]
            np.testing.assert_allclose(got, expected.run(feeds, reference_state)["logits"], rtol=1e-3, atol=1e-3)
            assert state.request.get_tensor("attention_mask").shape == [1, read]

    def test_a_cache_of_float16_is_held_in_float32_on_a_cpu(self, half_bundle):
        decoder = LocalDecoder.open(half_bundle, "openvino")
        assert decoder.dtype == np.float16
        assert {array.dtype for array in decoder.conversation().state.buffers.values()} == {np.dtype(np.float32)}

    @pytest.mark.parametrize(
        ("length", "capacity", "read"),
        [(1, 64, 32), (31, 40, 32), (32, 40, 32), (33, 64, 64), (33, 40, 40), (40, 40, 40), (8, 8, 8)],
    )
    def test_a_mask_is_padded_with_rows_that_are_not_attended_to(self, length, capacity, read):
        mask = openvino._padded_mask(np.ones((2, length), np.int64), capacity)
        assert mask.tolist() == [[1] * length + [0] * (read - length)] * 2


class TestSettings:
    @pytest.fixture
    def told(self, monkeypatch) -> list:
        """What OpenVINO is asked for, on a stand-in: (device, settings) and the type that states are held in."""
        told: list = []
        core = SimpleNamespace(
            available_devices=["CPU", "GPU.0", "NPU"],
            read_model=lambda model: "network",
            compile_model=lambda network, device, settings: told.append((network, device, settings)),
        )
        monkeypatch.setattr(openvino, "core", lambda: core)
        monkeypatch.setattr(openvino, "_readable", lambda model: model)
        monkeypatch.setattr(openvino, "_output_new_rows", lambda network: None)
        monkeypatch.setattr(openvino, "_state_typed", lambda network, held: f"{network} in {held.to_string()}")
        monkeypatch.setattr(OpenVINOEngine, "__init__", lambda self, compiled, device: None)
        return told

    @pytest.mark.parametrize(
        ("options", "network", "device", "settings"),
        [
            ({}, "network in f32", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}),
            ({"bf16": True}, "network in bf16", "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}),
            ({"threads": 3}, "network in f32", "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 3}),
            ({"device": "gpu", "threads": 3}, "network", "GPU", {}),
            ({"device": "npu"}, "network", "NPU", {}),
        ],
    )
    def test_a_cpu_is_told_precision_and_threads(self, told, tmp_path, options, network, device, settings):
        OpenVINOEngine.load(tmp_path / "m.onnx", EngineOptions(**options))
        assert told == [(network, device, {"PERFORMANCE_HINT": "LATENCY"} | settings)]

    def test_bf16_is_a_choice_of_the_cpu_alone(self, told, tmp_path):
        with pytest.raises(EngineError, match=r"^bf16 .*gpu"):
            OpenVINOEngine.load(tmp_path / "m.onnx", EngineOptions(device="gpu", bf16=True))

    @pytest.mark.parametrize(("device", "here"), [("cpu", True), ("gpu", True), ("gpu.0", True), ("gpu.1", False), ("npu", True)])
    def test_a_device_is_known_by_its_name_or_as_the_first_of_its_kind(self, told, device, here):
        assert (OpenVINOEngine.unavailable(device) is None) == here

    def test_what_openvino_says_is_its_last_line(self):
        assert openvino._last_line(RuntimeError("Check failed\n  at a.cpp:1\n  no such node \n\n")) == "no such node"
        assert openvino._last_line(RuntimeError(" \n")) == "RuntimeError"


class TestRefused:
    def test_feeds_of_another_shape_or_dtype(self, bundle):
        engine = open_engine(bundle, VISION, "openvino")
        with pytest.raises(EngineError, match=naming("pixel_values", "float64", "float32")):
            engine.run({"pixel_values": np.zeros((16, 3, 126, 126))})
        with pytest.raises(EngineError, match=naming("pixel_values", "[1, 3, 126, 126]", "[16, 3, 126, 126]")):
            engine.run({"pixel_values": np.zeros((1, 3, 126, 126), np.float32)})

    @pytest.mark.parametrize(
        ("device", "named"),
        [("npu", ["npu", "cpu"]), ("gpu.3", ["gpu.3"]), ("cuda", ["cuda", "cpu"])],
    )
    def test_a_device_that_is_not_here(self, bundle, device, named):
        with pytest.raises(EngineError, match=naming(*named)):
            open_engine(bundle, VISION, "openvino", EngineOptions(device=device))

    def test_the_standard_spelling(self, bundle, monkeypatch):
        bundle = Bundle(bundle.path, replace(bundle.manifest, llm=replace(bundle.llm, attention="standard")))
        with pytest.raises(EngineError, match=naming("--attention portable")):
            open_engine(bundle, DECODER, "openvino")

    def test_a_file_that_is_no_model(self, tmp_path):
        graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = Frobnicate(x) }")
        onnx.save(onnx.helper.make_model(graph), str(tmp_path / "m.onnx"))
        with pytest.raises(EngineError, match=naming("OpenVINO", tmp_path / "m.onnx", "Frobnicate")):
            OpenVINOEngine.load(tmp_path / "m.onnx")

    def test_without_the_package(self, bundle, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(UserError, match=r'pip install "st-gridpool\[openvino\]"'):
            open_engine(bundle, VISION, "openvino")

    def test_bf16_of_a_backend_that_has_none(self, bundle):
        with pytest.raises(EngineError, match=r"backend onnx .* bf16"):
            open_engine(bundle, VISION, "onnx", EngineOptions(bf16=True))


def test_engines_leave_no_signal_stack_behind(bundle):
    """A signal after two engines went in the order in which they came: a Core of its own for each made that a segmentation fault."""
    code = """
import os, signal, sys
from pathlib import Path
from runtime.engine import openvino
from runtime.engine.openvino import OpenVINOEngine
said = []
signal.signal(signal.SIGTERM, lambda *_: said.append("drained"))
first, second = (OpenVINOEngine.load(Path(sys.argv[1])) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGTERM)
print(*said)
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle.model(VISION_LOOP))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "drained"), done.stderr
