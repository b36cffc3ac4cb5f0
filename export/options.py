"""The options of an export: the one definition of names and defaults that the command line is built from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how; the CLI's options are these fields.

    model        family name
    checkpoint   directory or hub id; None for the checkpoint that ships with the package
    out          the bundle's directory; None for bundles/<model>
    frames       T; None for the checkpoint's or the family's own
    compress     preset or spec; None for the family's default
    place        where compression stands: after-projector (the paper) or before-projector (a cheaper projector)
    precision    fp32 | fp16 weights and activations, or int8 in Q/DQ; of both halves, where llm_precision says nothing else
    llm_precision  fp32 | fp16 | int8 | int4 | int4:BLOCK; int8 and int4 are weights in Q/DQ
    calibrate    a directory of videos that quantisation is measured on; None for the demo's generator
    error_budget  relative error that quantisation may make, of the features and of the logits; None for each half's own
    attention    portable | standard spelling of the decoder
    tensorrt     a TensorRT release whose ONNX parser must take every node, e.g. "10.3"; None for no such check
    max_context  KV positions; None for the clip and about a thousand more
    only         vision | llm to export one half
    input        pixels: the runtime resizes and normalises | frames | frames:HxW: the graph does, of uint8 frames of that size
    split        the vision half as encoder of a frame and compressor of T, instead of the loop: live video, memory on a GPU
    force        replace an existing bundle
    """

    model: str = "llava-ov"
    checkpoint: str | None = None
    out: str | None = None
    frames: int | None = None
    compress: str | None = None
    place: str = "after-projector"
    precision: str = "fp32"
    llm_precision: str | None = None
    calibrate: str | None = None
    error_budget: float | None = None
    attention: str = "portable"
    tensorrt: str | None = None
    max_context: int | None = None
    only: str | None = None
    input: str = "pixels"
    split: bool = False
    force: bool = False

    @property
    def of_llm(self) -> str:
        """`llm_precision`, or what follows from `precision`."""
        return self.precision if self.llm_precision is None else self.llm_precision

    @property
    def quantizes(self) -> bool:
        """Whether anything that is exported is quantised, and so measured on clips."""
        vision, llm = self.precision == "int8", self.of_llm.startswith("int")
        return (vision and self.only != "llm") or (llm and self.only != "vision")
