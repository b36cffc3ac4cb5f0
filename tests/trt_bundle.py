"""A tiny bundle for engine tests: a static vision graph and a decoder-like graph with dynamic S and T.

vision       pixel_values [2, 3, 8, 8] -> visual_tokens [4, 16]
llm/decoder  inputs_embeds [1, S, 16], position_ids [1, S], attention_mask [1, T], past [1, 2, 64, 8] -> logits [1, 1, 32], present
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from manifests import MANIFEST
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import DECODER, VISION, Bundle, write_manifest
from runtime.bundle.manifest import Limits
from runtime.engine import cuda, trt_api
from runtime.engine.trt_build import BuildOptions

CONTEXT = 64
RTX = BuildOptions(backend="tensorrt-rtx")
HERE = cuda.Gpu("Test GPU", (8, 9), 2**34)
ORIN = cuda.Gpu("Orin", (8, 7), 8 << 30)

needs_rtx = pytest.mark.skipif(not trt_api.installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed: pip install .[rtx]")


def make_bundle(directory: Path, seed: int = 0, vision_op: str = "Tanh") -> Bundle:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "llm").mkdir(exist_ok=True)
    onnx.save(_vision(seed, vision_op), directory / f"{VISION}.onnx")
    onnx.save(_decoder(seed), directory / f"{DECODER}.onnx")
    write_manifest(directory, replace(MANIFEST, limits=Limits(CONTEXT)))
    return Bundle.open(directory)


def _vision(seed: int, op: str) -> onnx.ModelProto:
    weight = np.random.default_rng(seed).standard_normal((96, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "rows"], ["patches"], name="vision/patchify"),
        helper.make_node("MatMul", ["patches", "weight"], ["projected"], name="vision/projector"),
        helper.make_node(op, ["projected"], ["visual_tokens"], name="compress/last"),
    ]
    constants = [numpy_helper.from_array(np.array([4, 96], np.int64), "rows"), numpy_helper.from_array(weight, "weight")]
    return _model(nodes, {"pixel_values": ("FLOAT", [2, 3, 8, 8])}, {"visual_tokens": ("FLOAT", [4, 16])}, constants)


def _decoder(seed: int) -> onnx.ModelProto:
    """Not a language model: an update of one cache row a position, a read of T rows and a projection of the last position."""
    weight = np.random.default_rng(seed).standard_normal((16, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["inputs_embeds", "heads"], ["rows"], name="llm/rows"),
        helper.make_node("Transpose", ["rows"], ["update"], name="llm/update", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["position_ids", "index_shape"], ["index"], name="llm/index"),
        helper.make_node("Shape", ["update"], ["update_shape"], name="llm/shape"),
        helper.make_node("Expand", ["index", "update_shape"], ["indices"], name="llm/indices"),
        helper.make_node("ScatterElements", ["past", "indices", "update"], ["present"], name="llm/scatter", axis=2),
        helper.make_node("Shape", ["attention_mask"], ["span"], name="llm/span", start=1, end=2),
        helper.make_node("Slice", ["present", "zero", "span", "two"], ["read"], name="llm/slice"),
        helper.make_node("ReduceMean", ["read", "two"], ["mean"], name="llm/mean", keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["context"], name="llm/context"),
        helper.make_node("MatMul", ["context", "weight"], ["logits"], name="llm/head"),
    ]
    constants = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {
            "heads": [1, -1, 2, 8],
            "index_shape": [1, 1, -1, 1],
            "zero": [0],
            "two": [2],
            "flat": [1, 1, 16],
        }.items()
    ]
    inputs = {
        "inputs_embeds": ("FLOAT", [1, "S", 16]),
        "position_ids": ("INT64", [1, "S"]),
        "attention_mask": ("INT64", [1, "T"]),
        "past": ("FLOAT", [1, 2, CONTEXT, 8]),
    }
    outputs = {"logits": ("FLOAT", [1, 1, 32]), "present": ("FLOAT", [1, 2, CONTEXT, 8])}
    return _model(nodes, inputs, outputs, [*constants, numpy_helper.from_array(weight, "weight")])


def _model(nodes: list, inputs: dict, outputs: dict, constants: list) -> onnx.ModelProto:
    def values(specs: dict) -> list:
        return [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape) for name, (kind, shape) in specs.items()]

    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
