"""Contestant: transformers' LlavaOnevisionForConditionalGeneration on the same checkpoint, frames and prompt embeddings.

    python benchmarks/contestant_transformers.py '{"checkpoint": DIR, "frames": T, "attention": "eager" | "sdpa",
                                                   "dtype": "float32" | "bfloat16", "prompts": [S, ...], "new_tokens": n,
                                                   "threads": n, "compile": bool}'

Prints what contestant_runtime.py prints. Decoding is a bare loop over the model with its KV cache, which is faster than `generate`.
"compile" is torch.compile of the vision tower alone; no number includes the time to compile.
"""

from __future__ import annotations

import json
import sys
import time

_START = time.perf_counter()
import torch  # noqa: E402 - timed
from transformers import LlavaOnevisionForConditionalGeneration  # noqa: E402

_IMPORT = time.perf_counter() - _START

from harness import since_start  # noqa: E402
from workload import pixel_values, prompt_embeddings, timed  # noqa: E402

_WARM_POSITIONS = 64


@torch.inference_mode()
def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        job["checkpoint"], dtype=dtype, attn_implementation=job["attention"], local_files_only=True
    ).eval()
    result = {"import": _IMPORT, "ready": since_start(), "prompts": []}

    pixels = torch.from_numpy(pixel_values(job["frames"], model.config.vision_config.image_size)).to(dtype)[None]  # [1, T, 3, h, h]

    if job.get("compile"):
        model.model.vision_tower = torch.compile(model.model.vision_tower)

    def encode():
        return model.get_video_features(pixels)

    encode()
    result["encode"], _ = timed(encode)
    _measure(model, min(_WARM_POSITIONS, *job["prompts"]), 2)
    result["prompts"] = [_measure(model, positions, job["new_tokens"]) for positions in job["prompts"]]
    print(json.dumps(result))


def _measure(model, positions: int, new_tokens: int) -> dict:
    embeddings = torch.from_numpy(prompt_embeddings(positions, model.config.text_config.hidden_size)).to(model.dtype)
    prefill, output = timed(lambda: model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1))

    def decode() -> None:
        step = output
        for _ in range(new_tokens):
            token = step.logits[:, -1].argmax(-1, keepdim=True)  # [1, 1]
            step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
        step.logits[:, -1].argmax(-1)

    decode_seconds, _ = timed(decode)
    return {"positions": positions, "prefill": prefill, "tokens_per_second": new_tokens / decode_seconds}


if __name__ == "__main__":
    main()
