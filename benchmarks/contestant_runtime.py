"""Contestant: this project's runtime on a bundle, on the CPU.

    python benchmarks/contestant_runtime.py '{"vision": BUNDLE or null, "llm": BUNDLE or null, "prompts": [S, ...], "new_tokens": n,
                                              "threads": n, "backend": "onnx" | "openvino", "bf16": bool,
                                              "chunk": positions a run of the prefill}'

Prints {"import", "ready", "encode", "prompts": [{"positions", "prefill", "tokens_per_second"}]}: seconds of `import runtime...`,
from process start to both components loaded, of one clip, and of each prompt. Each is run once unmeasured first.
"""

from __future__ import annotations

import json
import sys
import time

_START = time.perf_counter()
import runtime.chat  # noqa: E402, F401 - timed: what `python -m runtime run` imports

_IMPORT = time.perf_counter() - _START

import numpy as np  # noqa: E402
from harness import since_start  # noqa: E402
from workload import pixel_values, prompt_embeddings, timed  # noqa: E402

from runtime.bundle import Bundle  # noqa: E402
from runtime.engine import EngineOptions  # noqa: E402
from runtime.llm.decoder import PREFILL_CHUNK, LocalDecoder  # noqa: E402
from runtime.prompt import Prompt  # noqa: E402
from runtime.vision.encoder import VisionEncoder  # noqa: E402

_WARM_POSITIONS = 64


def main() -> None:
    job = json.loads(sys.argv[1])
    backend = job.get("backend", "onnx")
    options = EngineOptions("cpu", job["threads"], bf16=job.get("bf16", False))
    vision = VisionEncoder.open(Bundle.open(job["vision"]), backend, options) if job["vision"] else None
    decoder = prompt = None
    if job["llm"]:
        bundle = Bundle.open(job["llm"])
        decoder, prompt = LocalDecoder.open(bundle, backend, options), Prompt(bundle)
    result = {"import": _IMPORT, "ready": since_start(), "prompts": []}
    if vision:
        manifest = vision.bundle.manifest
        pixels = pixel_values(manifest.frames, manifest.preprocessing.size[0])
        vision.tokens(pixels)
        result["encode"], tokens = timed(lambda: vision.tokens(pixels))
        result["tokens"] = len(tokens)
    if decoder:
        chunk = job.get("chunk", PREFILL_CHUNK)
        _measure(decoder, prompt, min(_WARM_POSITIONS, *job["prompts"]), 2, chunk)
        result["prompts"] = [_measure(decoder, prompt, positions, job["new_tokens"], chunk) for positions in job["prompts"]]
    print(json.dumps(result))


def _measure(decoder: LocalDecoder, prompt: Prompt, positions: int, new_tokens: int, chunk: int) -> dict:
    """Prefill `positions` embeddings, then decode greedily; an end-of-sequence id does not stop it."""
    embeddings = prompt_embeddings(positions, prompt.embeddings.shape[1])
    conversation = decoder.conversation()
    prefill, logits = timed(lambda: conversation.extend(embeddings, chunk))

    def generate(logits: np.ndarray) -> None:
        for _ in range(new_tokens):
            logits = conversation.extend(prompt.embeddings[[int(logits.argmax())]][None])

    decode, _ = timed(lambda: generate(logits))
    return {"positions": positions, "prefill": prefill, "tokens_per_second": new_tokens / decode}


if __name__ == "__main__":
    main()
