"""TensorRT engines on a GPU: built and run, their numbers those of ONNX Runtime and of torch, as a CUDA graph, with the plugin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from on_gpu import NEEDS_GPU
from trt_bundle import make_bundle

from runtime.bundle import DECODER, VISION, Bundle
from runtime.engine import EngineOptions, backend_class, cuda, open_engine
from runtime.engine import trt_api as facade
from runtime.engine.trt_build import BuildOptions, build
from runtime.tools.parity import parity

pytestmark = NEEDS_GPU
DEVICE = EngineOptions(device="cuda")
LIBRARY = Path(__file__).parents[3] / "build" / "plugins" / "libst_gridpool_plugin.so"


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request) -> str:
    reason = backend_class(request.param).unavailable("cuda")
    if reason:
        pytest.skip(reason)
    if request.param == "tensorrt-rtx" and cuda.gpus()[0].capability == (9, 0):
        pytest.skip("TensorRT-RTX does not support compute capability 9.0")
    return request.param


@pytest.fixture(scope="module")
def tiny(backend, tmp_path_factory) -> Bundle:
    made = make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
    build(made, BuildOptions(backend=backend))
    return made


@pytest.fixture(scope="module")
def built(backend, bundle, tmp_path_factory) -> Bundle:
    copied = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(bundle.path, copied)
    build(Bundle.open(copied), BuildOptions(backend=backend))
    return Bundle.open(copied)


def test_an_engine_computes_what_onnx_runtime_does_before_and_after_it_is_a_cuda_graph(tiny, backend):
    engine, expected = open_engine(tiny, VISION, backend, DEVICE), open_engine(tiny, VISION, "onnx")
    for seed in range(4):
        feeds = {"pixel_values": np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)}
        np.testing.assert_allclose(engine.run(feeds)["visual_tokens"], expected.run(feeds)["visual_tokens"], rtol=1e-4, atol=1e-5)
        assert (engine._graph is not None) == (seed > 0), "captured at the second run"
    engine.close()


def test_a_state_stays_on_the_gpu_and_two_conversations_do_not_mix(tiny, backend):
    engines = [open_engine(tiny, DECODER, backend, DEVICE), open_engine(tiny, DECODER, "onnx")]
    states = [[engine.new_state({"past": "present"}) for _ in range(2)] for engine in engines]
    rng = np.random.default_rng(0)
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        for turn in range(2):
            feeds = {
                "inputs_embeds": rng.standard_normal((1, stop - start, 16)).astype(np.float32),
                "position_ids": np.arange(start, stop)[None],
                "attention_mask": np.ones((1, stop), np.int64),
            }
            got, expected = (engine.run(feeds, state[turn])["logits"] for engine, state in zip(engines, states, strict=True))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_both_components_compute_what_torch_computed(built, backend):
    report = parity(built, [backend], DEVICE)
    assert report.ok, report.rows
    assert {row.stage for row in report.rows} >= {"visual_tokens", "llm/prefill", "llm/greedy_ids"}


@pytest.mark.parametrize("plugin", ["aot", "library"])
def test_the_plugin_takes_the_call_and_computes_what_the_plain_nodes_do(bundle, tmp_path, plugin):
    reason = backend_class("tensorrt").unavailable("cuda")
    if reason:
        pytest.skip(reason)
    if plugin == "library" and not LIBRARY.exists():
        pytest.skip("build/plugins has no plugin library; plugins/README.md says how to build it")
    if plugin == "aot" and tuple(map(int, facade.load("tensorrt").__version__.split(".")[:2])) < (10, 9):
        pytest.skip("ahead-of-time plugins came with TensorRT 10.9")
    shutil.copytree(bundle.path, tmp_path / "bundle")
    copied = Bundle.open(tmp_path / "bundle")
    build(copied, BuildOptions(backend="tensorrt", graphs=(VISION,), plugin=str(LIBRARY) if plugin == "library" else "aot"))
    record = json.loads(next(copied.path.glob("engines/*/build.json")).read_text())
    assert record["graphs"][VISION]["plugin"] == plugin
    report = parity(copied, ["tensorrt"], DEVICE)
    tokens = [row for row in report.rows if row.stage == "visual_tokens"]
    assert tokens and all(tokens), report.rows
