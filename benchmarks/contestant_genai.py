"""Contestant: onnxruntime-genai's own int4 decoder for the CPU, on the LLM of the same checkpoint.

    python benchmarks/contestant_genai.py '{"model": DIR, "prompts": [S, ...], "new_tokens": n, "threads": n}'
    python benchmarks/contestant_genai.py --build CHECKPOINT DIR

Prints what contestant_runtime.py prints, without "encode". It takes no embeddings, so a prompt is S token ids: the same work without the
look-up. --build writes the LLM as a Qwen2 checkpoint and runs the package's model builder on it (int4, blocks of 32, accuracy level 4).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_START = time.perf_counter()

BLOCK = 32


def main() -> None:
    if sys.argv[1] == "--build":
        build(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    import onnxruntime_genai as genai

    imported = time.perf_counter() - _START
    from harness import since_start

    job = json.loads(sys.argv[1])
    config = genai.Config(job["model"])
    threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": job["threads"]}}}}
    config.overlay(json.dumps(threads))
    model = genai.Model(config)
    result = {"import": imported, "ready": since_start()}
    _measure(genai, model, 64, 2)
    result["prompts"] = [_measure(genai, model, positions, job["new_tokens"]) for positions in job["prompts"]]
    print(json.dumps(result))


def _measure(genai, model, positions: int, new_tokens: int) -> dict:
    import numpy as np
    from workload import timed

    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=positions + new_tokens + 1, do_sample=False)
    generator = genai.Generator(model, params)
    ids = np.random.default_rng(2).integers(0, 100_000, (1, positions), dtype=np.int32)
    prefill, _ = timed(lambda: generator.append_tokens(ids))

    def decode() -> int:
        made = 0
        while made < new_tokens and not generator.is_done():
            generator.generate_next_token()
            made += 1
        return made

    seconds, made = timed(decode)
    return {"positions": positions, "prefill": prefill, "tokens_per_second": made / seconds}


def build(checkpoint: Path, out: Path) -> None:
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM

    both = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype="float32")
    llm = Qwen2ForCausalLM(both.config.text_config)
    llm.model, llm.lm_head = both.model.language_model, both.lm_head
    with tempfile.TemporaryDirectory() as scratch:
        llm.save_pretrained(f"{scratch}/qwen2")
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(f"{scratch}/qwen2")
        options = [f"int4_block_size={BLOCK}", "int4_accuracy_level=4"]
        command = ["-m", "onnxruntime_genai.models.builder", "-i", f"{scratch}/qwen2", "-o", str(out), "-p", "int4", "-e", "cpu"]
        subprocess.run([sys.executable, *command, "-c", scratch, "--extra_options", *options], check=True)


if __name__ == "__main__":
    main()
