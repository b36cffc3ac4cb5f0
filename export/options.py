"""The options of an export, which the command line is made of."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.core.options import option


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how. Values out of range are refused by `export.preflight.check_options`.

    place      after-projector is the paper's, before-projector makes the projector cheaper
    precision  fp32 and fp16 are weights and activations, int8 is Q/DQ; the LLM's int8 and int4 are weights in Q/DQ
    input      pixels: the runtime resizes and normalises; frames: the graph does
    """

    model: str = option("llava-ov", "model family")
    checkpoint: str | None = option(None, "default: the small checkpoint that ships with the package", metavar="DIR|HUB_ID")
    out: str | None = option(None, "the bundle's directory (default: bundles/<model>)", metavar="DIR")
    frames: int | None = option(None, "frames of a clip (default: the checkpoint's)")
    compress: str | None = option(None, "token compression (default: the family's)", metavar="PRESET|SPEC")
    place: str = option("after-projector", "where compression stands", choices=("after-projector", "before-projector"))
    precision: str = option("fp32", "of the vision encoder and the LLM", choices=("fp32", "fp16", "int8"))
    llm_precision: str | None = option(None, "the LLM's (default: that of --precision)", metavar="fp32|fp16|int8|int4[:BLOCK]")
    calibrate: str | None = option(None, "videos that quantisation is measured on (default: generated clips)", metavar="DIR")
    error_budget: float | None = option(
        None, "relative error of features and logits that quantisation may make (default: each component's)", metavar="SHARE"
    )
    attention: str = option("portable", "how the decoder's attention is written for export", choices=("portable", "standard"))
    tensorrt: str | None = option(
        None, "make a node that this TensorRT release's parser does not support an error, e.g. 10.3", metavar="VERSION"
    )
    max_context: int | None = option(None, "KV positions (default: the clip and about a thousand more)")
    only: str | None = option(None, "export one component", choices=("vision", "llm"))
    input: str = option(
        "pixels", "uint8 frames of a fixed size, which the graph resizes and normalises", metavar="pixels|frames[:HxW]"
    )
    split: bool = option(False, "encoder of one frame and compressor of the clip as two graphs (live video)")
    force: bool = option(False, "replace an existing bundle")

    @property
    def of_llm(self) -> str:
        """`llm_precision`, or what follows from `precision`."""
        return self.precision if self.llm_precision is None else self.llm_precision

    @property
    def quantizes(self) -> bool:
        """Whether anything that is exported is quantised, and so measured on clips."""
        vision, llm = self.precision == "int8", self.of_llm.startswith("int")
        return (vision and self.only != "llm") or (llm and self.only != "vision")
