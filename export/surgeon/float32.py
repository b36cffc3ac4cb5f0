"""A check: norms anywhere, and softmaxes in compression, must compute in float32, also in a float16 graph.

3,584 squared float16 activations overflow (65504 / 3584 is an RMS of 4.3), and a softmax over norms of that size keeps two digits. So
in the `compress` scope no reduction, softmax or power may run in float16, elsewhere no norm. Stages cast to float32 themselves
(export/compress/stage.py, token_norm). LayerNormalization and RMSNormalization take their statistics in float32 by `stash_type`; the
attention softmax of encoder and LLM is traced in float32 or is inside an Attention (export/decoder.py, export/families/siglip.py).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context
from runtime.core.errors import ExportError

NORMS = {"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Pow"}
REDUCTIONS = NORMS | {"ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Softmax", "LogSoftmax", "Exp"}
_STASHED = {"LayerNormalization", "RMSNormalization"}


def run(graph: gs.Graph, context: Context) -> int:
    """Rewrites nothing."""
    return 0


def check(graph: gs.Graph, context: Context) -> str:
    """How many norms and softmaxes are in float32; ExportError where one is not, or where its type is not known."""
    found = 0
    for node in graph.nodes:
        if node.op in _STASHED and node.attrs.get("stash_type", 1) != 1:
            raise ExportError(f"{graph.name}: {node.name} takes its statistics in float16; expected stash_type 1, float32")
        if node.op not in (REDUCTIONS if node.name.startswith("compress/") else NORMS):
            continue
        dtype = node.inputs[0].dtype
        if dtype is None:
            raise ExportError(
                f"{graph.name}: the type of {node.inputs[0].name} is not known, so {node.name} may reduce in float16; run shape inference before the passes"
            )
        if dtype == np.float16:
            raise ExportError(f"{graph.name}: {node.name} reduces in float16; expected float32, cast in the module")
        found += dtype == np.float32
    return f"{found} norms and softmaxes in float32"
