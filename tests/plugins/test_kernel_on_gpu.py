"""The CUDA kernel on a GPU: the authors' golden vectors, and the definition computed in float64 on a CPU.

Outputs start as NaN, so that a token that is not written shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from on_gpu import NEEDS_GPU, gpu, to_device, to_host
from plugin_cases import BLOCK_CASES, DTYPES, GOLDEN, TOLERANCE, cuda_array, golden_case, random_clip, worst

import plugins
from plugins.op import StGridPool, output_shape
from plugins.reference import st_gridpool
from runtime.engine.cuda import Cuda

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
pytestmark = NEEDS_GPU

__all__ = ["gpu"]


def run(gpu: Cuda, x: np.ndarray, spec: StGridPool, captured: bool = False) -> np.ndarray:
    """captured: launched once to upload the plan, then replayed as a CUDA graph into an output of NaN."""
    shape = output_shape(spec, x.shape)
    blank = np.full(shape, np.nan, x.dtype)
    source, out = to_device(gpu, x), to_device(gpu, blank)

    def launch() -> None:
        plugins.st_gridpool(cuda_array(source, x.shape, x.dtype), spec, out=cuda_array(out, shape, x.dtype), stream=gpu.stream)

    launch()
    if captured:
        gpu.synchronize()
        gpu.to_device(out, blank)
        gpu.synchronize()
        graph = gpu.capture(launch)
        gpu.replay(graph)
        gpu.synchronize()
        gpu.drop_graph(graph)
    return to_host(gpu, out, shape, x.dtype)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_authors_vectors_come_out(gpu: Cuda, path: Path):
    spec, x, _, tokens = golden_case(path)
    hidden = -(-x.shape[-1] // 8) * 8
    repeated = np.concatenate([x] * (hidden // x.shape[-1]), axis=-1)  # norms are means over D: repeating tokens changes none
    assert worst(run(gpu, repeated, spec)[..., : x.shape[-1]], tokens) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("spec", "shape"), BLOCK_CASES, ids=lambda value: str(value).replace(" ", ""))
def test_every_block_shape_matches_float64(gpu: Cuda, spec: StGridPool, shape: tuple[int, ...], dtype: str):
    x = random_clip(shape, dtype, 0)
    assert worst(run(gpu, x, spec), st_gridpool(x, spec)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_of_the_7b_model_matches_float64(gpu: Cuda, dtype: str):
    x = random_clip((32, 27, 27, 3584), dtype, 1)
    assert worst(run(gpu, x, StGridPool()), st_gridpool(x, StGridPool())) < TOLERANCE[dtype]


def test_float16_norms_that_overflow_float16_stay_finite(gpu: Cuda):
    x = random_clip((1, 4, 4, 512), "float16", 1, scale=2000)
    spec = StGridPool((), (), window=2)
    assert worst(run(gpu, x, spec), st_gridpool(x, spec)) < TOLERANCE["float16"]


def test_it_can_be_captured_as_a_cuda_graph(gpu: Cuda):
    x, spec = random_clip((16, 9, 9, 128), "float16", 2), StGridPool()
    got = run(gpu, x, spec, captured=True)
    np.testing.assert_array_equal(got, run(gpu, x, spec))
    assert worst(got, st_gridpool(x, spec)) < TOLERANCE["float16"]
