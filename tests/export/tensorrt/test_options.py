"""What preflight refuses by options alone is what the table refuses of the graphs that the options make."""

from __future__ import annotations

import itertools
import re

import onnx
import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from export.decoder import Decoder
from export.options import ExportOptions, check_options
from export.quantize.layers import find_layers, with_weights
from export.quantize.qdq import w4, w8
from export.surgeon import run_passes
from export.tensorrt import RELEASES, check
from export.trace import trace_decoder
from runtime.core.errors import ExportError


class TestOptions:
    """What options alone refuse is what the table says of the graphs that they write."""

    PRECISIONS = ("fp32", "fp16", "int8", "int4")

    @pytest.fixture(scope="class")
    def decoders(self, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], onnx.ModelProto]:
        """{(attention, precision): a decoder of one small layer, as an export writes it}."""
        made = {}
        for attention in ("portable", "standard"):
            for precision in ("fp32", "fp16"):
                config = Qwen2Config(
                    vocab_size=33, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, max_position_embeddings=64,
                )  # fmt: skip
                decoder = Decoder(Qwen2ForCausalLM(config).eval().requires_grad_(False), 32, attention)
                path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
                traced = trace_decoder(decoder.half() if precision == "fp16" else decoder, path, attention)
                made[attention, precision], _ = run_passes(
                    traced, None, graph="llm/decoder", directory=path.parent, precision=precision
                )
            layers = find_layers(made[attention, "fp32"])
            for precision, quantize in (("int8", w8), ("int4", lambda model, layers: w4(model, layers, 16))):
                copied = with_weights(made[attention, "fp32"], path.parent)
                made[attention, precision] = quantize(copied, layers)
        return made

    @pytest.mark.parametrize("release", RELEASES)
    def test_every_combination_is_refused_where_the_table_refuses_its_graphs(self, decoders, release: str) -> None:
        refused = {key: bool(check(decoder, release)) for key, decoder in decoders.items()}
        for precision, llm, attention, only, place, split, frames in itertools.product(
            ("fp32", "fp16", "int8"), (None, *self.PRECISIONS), ("portable", "standard"), (None, "vision", "llm"),
            ("after-projector", "before-projector"), (False, True), ("pixels", "frames:720x1280"),
        ):  # fmt: skip
            if only == "llm" and (split or frames != "pixels"):
                continue  # refused whatever the release is
            options = ExportOptions(
                precision=precision, llm_precision=llm, attention=attention, only=only, place=place, split=split, input=frames,
                tensorrt=release,
            )  # fmt: skip
            vision, decoder = _opset(attention) > _newest(release), refused[attention, options.of_llm]
            expected = vision if only == "vision" else decoder
            try:
                check_options(options)
            except ExportError as error:
                assert expected, f"{options}: {error}"
            else:
                assert not expected, options

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (
                {"llm_precision": "int4", "tensorrt": "10.3"},
                ["--llm-precision int4", "21", "10.3", "20", "--llm-precision int8", "10.13"],
            ),
            (
                {"attention": "standard", "tensorrt": "10.13.3"},
                ["--attention standard", "24", "10.13.3", "22", "portable", "10.15"],
            ),
            (
                {"attention": "standard", "llm_precision": "int4:64", "tensorrt": "10.7"},
                ["--attention standard", "24", "int4:64", "21", "10.7", "20", "portable", "int8", "10.15"],
            ),
        ],
    )
    def test_the_option_the_opset_and_the_release_are_named(self, options: dict[str, str], named: list[str]) -> None:
        with pytest.raises(ExportError, match=".*".join(map(re.escape, named))):
            check_options(ExportOptions(**options))


def _opset(attention: str) -> int:
    return {"portable": 20, "standard": 24}[attention]


def _newest(release: str) -> int:
    return {"10.3": 20, "10.13": 22, "10.15": 24, "11.1": 24}[release]
