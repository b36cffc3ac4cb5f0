"""What TensorRT's parser requires of an operator beyond its types: attributes, constant inputs, ranks.

    LIMITS[op](node) -> the reason why it does not support the node, or None

What is not known of a tensor is assumed to be supported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Limit = Callable[[ir.Node], "str | None"]

_MAX_TOP_K = 3840


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def tensor_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input of that index; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    tensor = tensor_at(node, index)
    return None if tensor is None else ir.convenience.get_const_tensor(tensor)


def _value(node: ir.Node, index: int) -> np.ndarray | None:
    """The value of a constant input that is not in an external file."""
    constant = _constant(node, index)
    return None if constant is None or isinstance(constant, ir.ExternalTensor) else constant.numpy()


def _rank(node: ir.Node, index: int, default: int) -> int:
    tensor = tensor_at(node, index)
    return default if tensor is None or tensor.shape is None else len(tensor.shape)


def _outputs(node: ir.Node) -> int:
    return sum(bool(output.name) for output in node.outputs)


def _must_be_constant(index: int, role: str) -> Limit:
    def limit(node: ir.Node) -> str | None:
        computed = tensor_at(node, index) is not None and _constant(node, index) is None
        return f"its {role} must be a constant" if computed else None

    return limit


def _top_k(node: ir.Node) -> str | None:
    if _attribute(node, "sorted", 1) != 1:
        return "sorted must be 1"
    k = _value(node, 1)
    if k is not None and int(k.reshape(-1)[0]) > _MAX_TOP_K:
        return f"K is {int(k.reshape(-1)[0])}; expected at most {_MAX_TOP_K}"
    return None


def _scatter_nd(node: ir.Node) -> str | None:
    reduction = _attribute(node, "reduction", "none")
    return f'reduction is "{reduction}"; expected "none"' if reduction != "none" else None


def _one_output(node: ir.Node) -> str | None:
    return "only its first output is supported" if _outputs(node) > 1 else None


def _pool(node: ir.Node) -> str | None:
    if any(step != 1 for step in _attribute(node, "dilations", [])):
        return "dilations must all be 1"
    rank = _rank(node, 0, 4)
    if node.op_type != "LpPool" and rank not in (4, 5):
        return f"its input has {rank} dimensions; only 2D and 3D pooling are supported"
    return _one_output(node)


def _resize(node: ir.Node) -> str | None:
    allowed: dict[str, tuple[object, set]] = {
        "mode": ("nearest", {"nearest", "linear"}),
        "coordinate_transformation_mode": (
            "half_pixel",
            {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"},
        ),
        "keep_aspect_ratio_policy": ("stretch", {"stretch"}),
        "antialias": (0, {0}),
    }
    for name, (default, values) in allowed.items():
        if _attribute(node, name, default) not in values:
            return f"{name} is {_attribute(node, name, default)}; expected {' or '.join(map(str, sorted(values, key=str)))}"
    return None


def _zero_point(node: ir.Node) -> str | None:
    zero = _value(node, 2)
    return "its zero point must be 0" if zero is not None and np.any(zero.astype(np.float32)) else None


def _attention(node: ir.Node) -> str | None:
    for index, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if tensor_at(node, index) is not None:
            return f"{name} is not supported: pass the full cache and a mask"
    if _outputs(node) > 1:
        return "only its first output is supported: update the cache outside of it"
    if _attribute(node, "softcap", 0.0) or _attribute(node, "qk_matmul_output_mode", 0):
        return "softcap and qk_matmul_output_mode are not supported"
    fits = all(_rank(node, index, 4) == 4 for index in range(4))
    return None if fits else "Q, K, V and the mask must have 4 dimensions"


def _rotary(node: ir.Node) -> str | None:
    positions = tensor_at(node, 3)
    wrong = positions is not None and positions.dtype not in (None, ir.DataType.INT64)
    return "position_ids must be INT64" if wrong else None


def _tensor_scatter(node: ir.Node) -> str | None:
    if _attribute(node, "axis", -2) not in (-2, 2):
        return "axis must be -2"
    return "its tensors must have 4 dimensions" if _rank(node, 0, 4) != 4 else None


LIMITS: dict[str, Limit] = {
    "TopK": _top_k,
    "ScatterND": _scatter_nd,
    "LayerNormalization": _one_output,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "Resize": _resize,
    "QuantizeLinear": _zero_point,
    "DequantizeLinear": _zero_point,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _tensor_scatter,
    "CumSum": _must_be_constant(1, "axis"),
    "Squeeze": _must_be_constant(1, "axes"),
    "Unsqueeze": _must_be_constant(1, "axes"),
    "OneHot": _must_be_constant(1, "depth"),
    "Pad": _must_be_constant(3, "axes"),
    **{
        f"Reduce{kind}": _must_be_constant(1, "axes")
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
LIFTED = {"Pad": "10.13"}  # the first release without the limit
