"""The vision engine with an additional output for the page's heat map: the norm of every token just before compression.

    token_norms [T, H*W] (or [T, H, W]) float: the root mean square of the first compression stage's input tokens

It takes a few more nodes in the graph. So the norms cost no second run, and the uncompressed tokens never leave the engine. If the
backend is not ONNX Runtime, or the tensor is not found, the engine is the plain one and the page shows no heat map.

T frames, H, W patch rows and columns.
"""

from __future__ import annotations

from runtime.bundle import VISION_LOOP, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.engine import EngineOptions, place
from runtime.engine.onnx import OnnxEngine
from runtime.tools.stages import first_compression
from runtime.vision.engine import VisionEngine, open_vision

TOKEN_NORMS = "token_norms"


def open_with_norms(bundle: Bundle, backend: str, options: EngineOptions) -> VisionEngine:
    """The vision engine of `bundle`, with the output TOKEN_NORMS if that is possible."""
    options = place(bundle, backend, options).options
    looped = backend in ("auto", "onnx") and bundle.vision_graphs(options.device) == (VISION_LOOP,)
    model = _with_norms(bundle) if looped else None
    if model is None:
        return open_vision(bundle, backend, options)
    return VisionEngine(OnnxEngine.load(model, options, data=bundle.path))


def _with_norms(bundle: Bundle) -> bytes | None:
    """The frame-by-frame graph with the output added; None if the manifest or the graph lacks the tensor."""
    try:
        from onnx import TensorProto, helper
    except ImportError:
        return None
    stages = bundle.manifest.stages
    first = first_compression([stage.name for stage in stages])
    if not first:
        return None
    tensor = stages[first - 1].tensor
    model = read_graph(bundle.model(VISION_LOOP))
    if not any(tensor in node.output for node in model.graph.node):
        return None
    model.graph.initializer.append(helper.make_tensor(f"{TOKEN_NORMS}/axes", TensorProto.INT64, [1], [-1]))
    model.graph.node.extend(
        [
            # float32, because the squares of fp16 activations overflow
            helper.make_node("Cast", [tensor], [f"{TOKEN_NORMS}/wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{TOKEN_NORMS}/wide", f"{TOKEN_NORMS}/wide"], [f"{TOKEN_NORMS}/squared"]),
            helper.make_node("ReduceMean", [f"{TOKEN_NORMS}/squared", f"{TOKEN_NORMS}/axes"], [f"{TOKEN_NORMS}/mean"], keepdims=0),
            helper.make_node("Sqrt", [f"{TOKEN_NORMS}/mean"], [TOKEN_NORMS]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(TOKEN_NORMS, TensorProto.FLOAT, None))
    return model.SerializeToString()
