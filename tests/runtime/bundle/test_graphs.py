"""Which graphs of a bundle run where, and what their files and tensors are called."""

from __future__ import annotations

import pytest
from manifests import WITHOUT_LLM, bundle_of

from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP
from runtime.bundle.graphs import component_of, file_of
from runtime.core.errors import BundleError

SPLIT = (VISION_ENCODER, VISION_COMPRESSOR)


@pytest.mark.parametrize(
    ("files", "split", "on_cpu", "on_gpu"),
    [
        (["vision.onnx", "vision.loop.onnx"], False, (VISION_LOOP,), (VISION,)),
        (["vision.onnx"], False, (VISION,), (VISION,)),
        (["vision.onnx"], True, SPLIT, SPLIT),
        (["vision.onnx", "vision.loop.onnx"], True, SPLIT, SPLIT),
    ],
)
def test_a_cpu_encodes_frame_by_frame_where_the_bundle_has_such_a_graph(files, split, on_cpu, on_gpu):
    bundle = bundle_of(*files, split=split)
    assert (bundle.vision_graphs("cpu"), bundle.vision_graphs("cuda"), bundle.vision_graphs("gpu")) == (on_cpu, on_gpu, on_gpu)
    assert bundle.is_split is split and bundle.has(VISION) and bundle.has(VISION_LOOP) is ("vision.loop.onnx" in files)


def test_components_are_the_graphs_that_may_be_exported_alone():
    assert bundle_of("vision.onnx", "llm/decoder.onnx").components == (VISION, DECODER)
    assert bundle_of("llm/decoder.onnx", "llm/decoder.batch.onnx").components == (DECODER,)
    assert bundle_of("vision.onnx", split=True).components == (VISION,)


def test_questions_are_answered_by_the_vision_graphs_of_a_device_and_the_decoder():
    assert bundle_of("vision.onnx", "vision.loop.onnx", "llm/decoder.onnx").graphs("cpu") == (VISION_LOOP, DECODER)
    assert bundle_of("vision.onnx", "llm/decoder.onnx", "llm/decoder.batch.onnx", split=True).graphs("cuda") == (*SPLIT, DECODER)
    assert bundle_of("llm/decoder.onnx").graphs("cuda") == (DECODER,)


@pytest.mark.parametrize("asked", ["llm", "prompt", "max_context"])
def test_what_only_an_llm_has_is_an_error_without_one(asked):
    assert getattr(bundle_of(), asked)
    without = bundle_of(path="bundles/b", **WITHOUT_LLM)
    assert not without.has_llm
    with pytest.raises(BundleError, match=r"bundles/b has no LLM.*--only"):
        getattr(without, asked)


def test_names():
    assert (file_of(DECODER), component_of("llm/decoder.batch"), component_of(VISION_LOOP)) == ("llm/decoder.onnx", DECODER, VISION)
