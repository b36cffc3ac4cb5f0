"""What TensorRT's parser requires of an operator beyond its types: attributes, constant inputs, ranks.

    LIMITS[op](View(node, tensors, release)) -> the reason why it does not support the node, or None

What is not known of a tensor is assumed to be supported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.tensorrt.operators import RELEASES
from export.tensorrt.tensors import Tensors

_MAX_TOP_K = 3840


@dataclass(frozen=True)
class View:
    """One node with what its limits depend on; release: one of RELEASES."""

    node: NodeProto
    tensors: Tensors
    release: str

    def attribute(self, name: str, default: object) -> object:
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def input(self, index: int) -> str:
        return self.node.input[index] if index < len(self.node.input) else ""

    def outputs(self) -> int:
        return sum(bool(name) for name in self.node.output)

    def value(self, index: int) -> np.ndarray | None:
        return self.tensors.values.get(self.input(index))

    def rank(self, index: int, default: int) -> int:
        return self.tensors.ranks.get(self.input(index), default)


Limit = Callable[[View], str | None]


def _constant(index: int, role: str, until: str = "") -> Limit:
    """The input must be a constant; `until` is the first release where it need not."""

    def limit(view: View) -> str | None:
        name = view.input(index)
        lifted = until and RELEASES.index(view.release) >= RELEASES.index(until)
        return f"its {role} must be a constant" if name and name not in view.tensors.constants and not lifted else None

    return limit


def _top_k(view: View) -> str | None:
    if view.attribute("sorted", 1) != 1:
        return "sorted must be 1"
    k = view.value(1)
    if k is not None and int(k.reshape(-1)[0]) > _MAX_TOP_K:
        return f"K is {int(k.reshape(-1)[0])}; expected at most {_MAX_TOP_K}"
    return None


def _scatter_nd(view: View) -> str | None:
    reduction = view.attribute("reduction", "none")
    return f'reduction is "{reduction}"; expected "none"' if reduction != "none" else None


def _one_output(view: View) -> str | None:
    return "only its first output is supported" if view.outputs() > 1 else None


def _pool(view: View) -> str | None:
    if any(step != 1 for step in view.attribute("dilations", [])):  # type: ignore[attr-defined]
        return "dilations must all be 1"
    rank = view.rank(0, 4)
    if view.node.op_type != "LpPool" and rank not in (4, 5):
        return f"its input has {rank} dimensions; only 2D and 3D pooling are supported"
    return _one_output(view)


def _resize(view: View) -> str | None:
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
        if view.attribute(name, default) not in values:
            return f"{name} is {view.attribute(name, default)}; expected {' or '.join(map(str, sorted(values, key=str)))}"
    return None


def _zero_point(view: View) -> str | None:
    zero = view.value(2)
    return "its zero point must be 0" if zero is not None and np.any(zero.astype(np.float32)) else None


def _attention(view: View) -> str | None:
    for index, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if view.input(index):
            return f"{name} is not supported: pass the full cache and a mask"
    if view.outputs() > 1:
        return "only its first output is supported: update the cache outside of it"
    if view.attribute("softcap", 0.0) or view.attribute("qk_matmul_output_mode", 0):
        return "softcap and qk_matmul_output_mode are not supported"
    fits = all(view.rank(index, 4) == 4 for index in range(4) if view.input(index))
    return None if fits else "Q, K, V and the mask must have 4 dimensions"


def _rotary(view: View) -> str | None:
    kind = view.tensors.types.get(view.input(3), TensorProto.INT64)
    return "position_ids must be INT64" if kind != TensorProto.INT64 else None


def _tensor_scatter(view: View) -> str | None:
    if view.attribute("axis", -2) not in (-2, 2):
        return "axis must be -2"
    return "its tensors must have 4 dimensions" if view.rank(0, 4) != 4 else None


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
    "CumSum": _constant(1, "axis"),
    "Squeeze": _constant(1, "axes"),
    "Unsqueeze": _constant(1, "axes"),
    "OneHot": _constant(1, "depth"),
    "Pad": _constant(3, "axes", until="10.13"),
    **{
        f"Reduce{kind}": _constant(1, "axes")
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
