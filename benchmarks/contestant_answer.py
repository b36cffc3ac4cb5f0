"""Contestant: one answer of a fresh process about the demo's clip, by this runtime or by transformers, its length fixed.

    python benchmarks/contestant_answer.py '{"who": "runtime" | "transformers", "bundle": DIR, "video": FILE, "question": TEXT,
                                             "new_tokens": n, "threads": n}'

Prints {"ready", "first_token", "tokens_per_second", "id"}: seconds from the start of the process until both components are loaded
and until the first token, the rate of the tokens after it, and the first id.
"""

from __future__ import annotations

import json
import sys
import time

from harness import ROOT, since_start


def main() -> None:
    job = json.loads(sys.argv[1])
    result = {"runtime": _runtime, "transformers": _transformers}[job["who"]](job)
    print(json.dumps(result))


def _runtime(job: dict) -> dict:
    from runtime.bundle import Bundle
    from runtime.chat import VideoChat
    from runtime.engine import EngineOptions

    chat = VideoChat.open(Bundle.open(job["bundle"]), "onnx", EngineOptions("cpu", job["threads"]))
    chat.prompt.tokenizer.encode("")  # loaded when first used
    ready = since_start()
    conversation = chat.decoder.conversation()
    logits = conversation.extend(chat.prompt.embed(chat.prompt.ids(job["question"]), chat.vision.encode(job["video"]).tokens))
    first_id, first, start = int(logits.argmax()), since_start(), time.perf_counter()
    for _ in range(job["new_tokens"]):
        logits = conversation.extend(chat.prompt.embeddings[[int(logits.argmax())]][None])
    return _result(job, ready, first, start, first_id)


def _transformers(job: dict) -> dict:
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    from runtime.bundle import Bundle
    from runtime.media.preprocess import Preprocessor, load_clip
    from runtime.prompt import Prompt

    torch.set_num_threads(job["threads"])
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        ROOT / "export/demo/checkpoint", dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    bundle = Bundle.open(job["bundle"])
    prompt = Prompt(bundle)
    prompt.tokenizer.encode("")
    ready = since_start()
    with torch.inference_mode():
        pixels, _ = load_clip(job["video"], bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
        visual = model.get_video_features(torch.from_numpy(pixels)[None])
        visual = getattr(visual, "pooler_output", visual)
        visual = visual[0] if isinstance(visual, (list, tuple)) or visual.ndim == 3 else visual
        visual = torch.cat([visual, model.model.image_newline[None]])
        ids = prompt.ids(job["question"])
        embed = model.get_input_embeddings()
        embeddings = torch.cat([embed(torch.tensor(ids.before)), visual, embed(torch.tensor(ids.after))])[None]
        output = model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        first_id, first, start = int(token), since_start(), time.perf_counter()
        for _ in range(job["new_tokens"]):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
    return _result(job, ready, first, start, first_id)


def _result(job: dict, ready: float, first: float, start: float, first_id: int) -> dict:
    rate = job["new_tokens"] / (time.perf_counter() - start)
    return {"ready": ready, "first_token": first, "tokens_per_second": rate, "id": first_id}


if __name__ == "__main__":
    main()
