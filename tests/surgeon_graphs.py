"""What the tests of the passes share: graphs from text, their operators before and after, and equal numbers in ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from export.surgeon import PassReport, run_passes


def model_from_text(body: str, opset: int = 20, **constants: np.ndarray) -> onnx.ModelProto:
    """A model of ONNX's textual syntax with further initializers, types and shapes inferred, nodes called by their first output."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in model.graph.node:
        node.name = node.name or f"node_{node.output[0]}"
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def counts(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(ops(model)))


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feed)


def rewrite(
    model: onnx.ModelProto,
    passes: list[str] | None,
    feed: dict[str, np.ndarray],
    graph: str = "vision",
    precision: str = "fp32",
    tolerance: float = 0.0,
) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Run the passes; what comes out is valid ONNX, has the same inputs and outputs, the same numbers, and is left as it is by a second run."""
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after, reports = run_passes(model, passes, graph=graph, precision=precision)
    onnx.checker.check_model(after, full_check=True)
    assert [(v.name, v.type) for v in after.graph.input] == [(v.name, v.type) for v in before.graph.input]
    assert [(v.name, v.type) for v in after.graph.output] == [(v.name, v.type) for v in before.graph.output]
    for expected, got in zip(run(before, feed), run(after, feed), strict=True):
        assert expected.dtype == got.dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    kept = onnx.ModelProto()
    kept.CopyFrom(after)
    again, second = run_passes(kept, passes, graph=graph, precision=precision)
    assert [report.rewrites for report in second] == [0] * len(second)
    assert [(n.op_type, n.name, list(n.input), list(n.output)) for n in again.graph.node] == [
        (n.op_type, n.name, list(n.input), list(n.output)) for n in after.graph.node
    ]
    return after, reports


def normal(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
