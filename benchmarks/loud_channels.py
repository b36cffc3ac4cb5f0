"""What loud channels cost an int8 encoder, with and without equalisation (export/quantize/equalize.py), on the demo checkpoint.

    python benchmarks/loud_channels.py [--channels 2] [--seed 0]

Trained vision transformers have a few channels that are much louder than the rest; the small checkpoint has none. So of each
normalisation's channels a few are made louder and the weights behind them as much smaller, which changes nothing in float, and the
encoder is quantised: all its layers, and as many as the default error budget allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from unittest import mock

import numpy as np
import onnx
from harness import log, table, write_section
from onnx import numpy_helper

from export.options import ExportOptions
from export.pipeline import export_bundle
from export.quantize import equalize
from export.quantize.clips import Clips
from export.quantize.layers import with_weights
from export.quantize.report import Report
from export.quantize.vision import BUDGET, quantize_vision
from runtime.bundle import VISION, Bundle

LOUDNESS = (1, 3, 10, 30, 100)
COLUMNS = ("loudness", "relative error in int8, without", "with", "layers in int8 under the budget, without", "with")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=2, help="of each normalisation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        bundle = export_bundle(ExportOptions(out=f"{directory}/bundle", only="vision")).bundle
        exact = onnx.load(str(bundle.model(VISION)), load_external_data=False)
        for loudness in LOUDNESS:
            model = with_weights(exact, bundle.model(VISION).parent)
            raise_channels(model, loudness, args.channels, np.random.default_rng(args.seed))
            errors, layers = [], []
            for alphas in ((), equalize.ALPHAS):
                with mock.patch.object(equalize, "ALPHAS", alphas):
                    errors.append(f"{_quantized(bundle, model, 1.0).error:.3f}")
                    within = _quantized(bundle, model, None)
                    layers.append(f"{within.lowered} of {len(within.layers)}")
            rows.append([f"{loudness}x", *errors, *layers])
            log(" ".join(rows[-1]))
    text = (
        f"The demo checkpoint's encoder, {args.channels} channels behind each normalisation that much louder, seed {args.seed}; "
        f"budget {BUDGET:g}.\n\n{table(COLUMNS, rows)}"
    )
    write_section("loud-channels", text)
    return 0


def _quantized(bundle: Bundle, model: onnx.ModelProto, budget: float | None) -> Report:
    clips = Clips(bundle.manifest.preprocessing)
    return quantize_vision(model, bundle.path, [], bundle.manifest.grid, clips, budget)[1]


def raise_channels(model: onnx.ModelProto, loudness: float, channels: int, rng: np.random.Generator) -> None:
    """Make that many channels behind each LayerNormalization louder and the weights that read them smaller; in float nothing changes."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        readers = [node for node in model.graph.node if norm.output[0] in node.input]
        if any(node.op_type != "MatMul" for node in readers):
            continue
        factors = np.ones(tensors[norm.input[1]].dims[0], np.float32)
        factors[rng.choice(len(factors), channels, replace=False)] = loudness
        of = dict.fromkeys(norm.input[1:], factors) | {reader.input[1]: 1 / factors[:, None] for reader in readers}
        for name, factor in of.items():
            tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * factor, name))


if __name__ == "__main__":
    sys.exit(main())
