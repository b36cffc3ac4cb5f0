"""Which ONNX operators the ONNX parsers of TensorRT releases support, for which types, up to which opset.

From docs/operators.md and docs/Changelog.md of the parser's repository (onnx/onnx-tensorrt):
    10.3   JetPack 6.2. The table of 10.1-GA, the last change of that file before 10.3: the change log of 10.2 and 10.3 adds no
           operator, and lets `Slice` read its axes from a tensor.
    10.13  JetPack 7. The table of 10.14-GA without `Attention`, which the change log dates to 10.14. Its highest opset, 22, is the
           least certain number here: it is documented for a release between 10.9 and 10.13, not for 10.13 itself.
    10.15  The table of 11.1-GA without `Swish`; it agrees with the part of the 10.15 table that was read.
    11.1   The table of 11.1-GA.
An operator that is in no table is not supported. UINT8 exists only as a network's input or output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.core.errors import ExportError


@dataclass(frozen=True)
class Parser:
    """operators: {name: supported types of its data}; min_opset, max_opset: of the default ONNX domain, inclusive."""

    operators: dict[str, frozenset[str]]
    max_opset: int
    min_opset: int = 9


def _operators(*groups: tuple[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(types.split()) for types, names in groups for name in names.split()}


_OF_10_3 = _operators(
    (
        "FP32 FP16 BF16",
        """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum
        Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
        HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log
        LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu ParametricSoftplus Pow
        QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize Round ScaledTanh
        Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample
        """,
    ),
    (
        "FP32 FP16 BF16 INT32 INT64",
        """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul Neg Pad
        Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
        """,
    ),
    (
        "FP32 FP16 BF16 INT32 INT64 BOOL",
        """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
        """,
    ),
    ("FP32 FP16", "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    ("BOOL", "And Not Or Xor"),
    ("FP32 FP16 BF16 INT32 INT64 UINT8 BOOL", "Cast CastLike"),
    ("INT8 INT4 FP8", "DequantizeLinear"),
    ("FP32 FP16 BF16 INT8 INT32 INT64", "Gelu"),
    ("FP32 FP16 BF16 FP8 INT32 INT64", "Mean"),
)

_OF_10_13 = _OF_10_3 | _operators(
    ("FP32 FP16", "BlackmanWindow HammingWindow HannWindow"),
    ("FP32", "STFT"),
    ("FP32 FP16 BF16 INT32 INT64", "Pow"),
    ("FP32 FP16 BF16 FP8 FP4 INT4 INT32 INT64 BOOL", "Constant ConstantOfShape"),
    ("INT8 INT4 FP8 FP4", "DequantizeLinear"),
)

_OF_10_15 = _OF_10_13 | _operators(
    ("FP32 FP16 BF16 INT8 FP8", "Attention"),
    ("FP32 FP16 BF16", "RMSNormalization RotaryEmbedding"),
    ("FP32 FP16 BF16 INT32", "TensorScatter"),
)

_OF_11_1 = _OF_10_15 | _operators(("FP32 FP16 BF16", "Swish"))

PARSERS = {
    "10.3": Parser(_OF_10_3, max_opset=20),
    "10.13": Parser(_OF_10_13, max_opset=22),
    "10.15": Parser(_OF_10_15, max_opset=24),
    "11.1": Parser(_OF_11_1, max_opset=24),
}
RELEASES = tuple(PARSERS)


def release_of(version: str) -> str:
    """The newest known release that is not newer than `version`: "10.7" -> "10.3"; a bare major means its newest release."""
    known = {release: tuple(map(int, release.split("."))) for release in RELEASES}
    match = re.fullmatch(r"(\d+)(?:\.(\d+)(?:\.\d+)*|\.x)?", version.strip())
    if match and int(match[1]) in {major for major, _ in known.values()}:
        not_newer = [release for release in RELEASES if known[release] <= (int(match[1]), float(match[2] or "inf"))]
        if not_newer:
            return not_newer[-1]
    raise ExportError(f'no table for TensorRT "{version}"; known: {", ".join(RELEASES)} and the versions between them')
