"""The bundle: the one contract between export, the Python runtime and the C++ runtime.

    manifest.json                 everything below, sized and hashed, and what the runtime must know
    vision.onnx (+ .data)         pixel_values [T, 3, h, w] -> visual_tokens [N, D]; N is a constant
    vision.loop.onnx              the same over the same weights, frame by frame: what a CPU runs
    vision.encoder.onnx           instead of vision.loop.onnx in a bundle that was split: pixel_values [1, 3, h, w] ->
    vision.compressor.onnx        features [1, H, W, C], and features [T, H, W, C] -> visual_tokens [N, D]; the same weights
    llm/decoder.onnx (+ .data)    inputs_embeds [1, S, D], position_ids, KV, attention_mask -> logits [1, 1, V], KV
    llm/decoder.batch.onnx        the same over the same weights for B conversations at once: what a server decodes with
    llm/embed_tokens.npy          [V, D], memory-mapped; int8 with llm/embed_scales.npy [V] where the LLM is quantized
    llm/tokenizer.json, llm/chat_template.jinja
    quantization.json             where something is quantized: the precision and the error of every layer
    reference/                    a fixed input and torch's output for it, in Polygraphy's formats
    engines/                      engines built later; they carry their own build.json and are not in the manifest

T frames, H, W patch rows and columns, C features of a patch, D hidden, N visual tokens, S prompt positions, V vocabulary.
"""

from runtime.bundle.bundle import Bundle
from runtime.bundle.files import MANIFEST, foreign_files, write_manifest
from runtime.bundle.graphs import (
    BATCH,
    COMPONENTS,
    DECODER,
    DECODER_BATCH,
    GRAPHS,
    VISION,
    VISION_COMPRESSOR,
    VISION_ENCODER,
    VISION_LOOP,
)
from runtime.bundle.manifest import REPETITION_PENALTIES, SCHEMA_VERSION, Manifest

__all__ = [
    "BATCH",
    "COMPONENTS",
    "DECODER",
    "DECODER_BATCH",
    "GRAPHS",
    "MANIFEST",
    "REPETITION_PENALTIES",
    "SCHEMA_VERSION",
    "VISION",
    "VISION_COMPRESSOR",
    "VISION_ENCODER",
    "VISION_LOOP",
    "Bundle",
    "Manifest",
    "foreign_files",
    "write_manifest",
]
