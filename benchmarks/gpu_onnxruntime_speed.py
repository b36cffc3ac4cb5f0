"""The 0.5B bundle on ONNX Runtime beside the same model in torch: encode, prefill, first token, decode, in one process, in turns.

`runtime bench` goes first, run as a user would. Then every contestant does each stage once per round. torch's models are random,
of the bundle's shapes, on the GPU in half precision; their pixels are there already, the runtime is fed NumPy arrays as always: its
upload is in its time.

T frames, N visual tokens, S prompt positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from gpu_onnxruntime_report import Report
from gpu_timing import synchronised
from harness import ROOT, TEXT_POSITIONS, log, table
from random_checkpoint import SIZES, config
from workload import pixel_values, prompt_embeddings

NEW_TOKENS = 32
TORCH = (("float16", "sdpa"), ("bfloat16", "sdpa"), ("float16", "eager"))
COLUMNS = ("", "encode + compress ms", "prefill ms", "first token ms", "decode tok/s")


@dataclass
class Contestant:
    """encode: one clip; prefill: one prompt, and returns what decodes NEW_TOKENS after it; spent: seconds of each round."""

    name: str
    encode: Callable[[], Any]
    prefill: Callable[[], Callable[[], Any]]
    spent: dict[str, list[float]] = field(default_factory=dict)


def bench_of(args: argparse.Namespace, report: Report) -> None:
    """`python -m runtime bench` in a separate process."""
    for directory in args.bundles:
        command = [
            "-m",
            "runtime",
            "bench",
            str(directory),
            "--backend",
            "onnx",
            "--device",
            args.device,
            "--rounds",
            str(args.rounds),
        ]
        done = subprocess.run([sys.executable, *command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            report.failed(f"runtime bench of {directory.name}", done.stderr[-600:])
            continue
        numbers = json.loads(done.stdout)
        rows = [[row["stage"], f"{row['median']:.5g}", f"{row['p90']:.5g}", row["unit"]] for row in numbers["rows"]]
        counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in numbers["tokens"].items())
        text = f"{counted}; loaded in {numbers['load_seconds']:.1f} s\n\n{table(('stage', 'median', 'p90', 'unit'), rows)}"
        report.section(f"runtime bench of {directory.name}", text, numbers)


def race_of(args: argparse.Namespace, report: Report) -> None:
    import torch

    for directory in args.bundles:
        with torch.inference_mode():
            _race(torch, directory, args, report)


def _race(torch: Any, directory: Any, args: argparse.Namespace, report: Report) -> None:
    from runtime.bundle import Bundle

    bundle = Bundle.open(directory)
    contestants = [
        report.attempt(f"ONNX Runtime, {directory.name}", lambda: _runtime(bundle, args.device)),
        *(
            report.attempt(f"torch, {dtype}, {attention}", lambda d=dtype, a=attention: _torch(torch, bundle, d, a, args))
            for dtype, attention in TORCH
        ),
    ]
    running = [contestant for contestant in contestants if contestant is not None]
    for number in range(args.rounds + 1):
        for contestant in list(running):
            log(f"round {number} of {args.rounds}: {contestant.name}")
            if report.attempt(contestant.name, lambda c=contestant, n=number: _round(torch, c, args.device, n > 0) or True) is None:
                running.remove(contestant)
        if number:
            _write(bundle, contestants, args, report)


def _round(torch: Any, contestant: Contestant, device: str, counts: bool) -> None:
    encode, _ = synchronised(torch, device, contestant.encode)
    prefill, decode = synchronised(torch, device, contestant.prefill)
    steps, _ = synchronised(torch, device, decode)
    for stage, seconds in (
        {"encode": encode, "prefill": prefill, "first": encode + prefill, "decode": steps}.items() if counts else ()
    ):
        contestant.spent.setdefault(stage, []).append(seconds)


def _write(bundle: Any, contestants: list[Contestant | None], args: argparse.Namespace, report: Report) -> None:
    """The section once all rounds are there; the numbers after every round."""
    made = [contestant for contestant in contestants if contestant is not None and contestant.spent]
    numbers = {contestant.name: contestant.spent for contestant in made}
    title = f"{bundle.path.name}: {bundle.manifest.frames} frames, {bundle.manifest.tokens_per_clip:,} visual tokens"
    if any(len(contestant.spent["encode"]) == args.rounds for contestant in made):
        rows = []
        for contestant in made:
            ms = [1000 * median(contestant.spent[stage]) for stage in ("encode", "prefill", "first")]
            rows.append([contestant.name, *ms, NEW_TOKENS / median(contestant.spent["decode"])])
        report.section(title, table(COLUMNS, rows), numbers)
    else:
        report.add(title, numbers)


def _runtime(bundle: Any, device: str) -> Contestant:
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder
    from runtime.prompt import Prompt
    from runtime.tools import reference
    from runtime.vision.encoder import VisionEncoder

    options = EngineOptions(device=device)
    vision, decoder = VisionEncoder.open(bundle, "onnx", options), LocalDecoder.open(bundle, "onnx", options)
    clip, rows = reference.clip(bundle).astype(vision.engine.pixel_values.dtype), Prompt(bundle).embeddings
    embeddings = prompt_embeddings(bundle.manifest.tokens_per_clip + TEXT_POSITIONS, bundle.manifest.hidden_size)

    def prefill() -> Callable[[], Any]:
        conversation = decoder.conversation()
        logits = conversation.extend(embeddings)

        def decode() -> None:
            made = logits
            for _ in range(NEW_TOKENS):
                made = conversation.extend(rows[[int(made.argmax())]][None])

        return decode

    variant = "" if bundle.llm.attention == "portable" else f", {bundle.llm.attention} attention"
    return Contestant(f"ONNX Runtime, {bundle.manifest.precision}{variant}", lambda: vision.tokens(clip), prefill)


def _torch(torch: Any, bundle: Any, dtype_name: str, attention: str, args: argparse.Namespace) -> Contestant:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    from export.compress import make

    log(f"making torch's model in {dtype_name}, {attention}")
    shape, frames, dtype = SIZES[args.size], bundle.manifest.frames, getattr(torch, dtype_name)
    with torch.device(args.device):
        settings = LlavaOnevisionConfig(**config(shape))
        kind = LlavaOnevisionForConditionalGeneration
        # transformers ignores torch's default dtype: without `dtype` the model is float32 and casts its inputs
        model = kind._from_config(settings, attn_implementation=attention, dtype=dtype).eval()
    side, hidden = shape.image // 14, shape.llm.width
    pixels = torch.from_numpy(pixel_values(frames, shape.image)).to(args.device, dtype)
    module = make(bundle.manifest.compression.spec, frames=frames, height=side, width=side).to(args.device).eval()
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    embeddings = prompt_embeddings(bundle.manifest.tokens_per_clip + TEXT_POSITIONS, hidden)
    prompt = torch.from_numpy(embeddings).to(args.device, dtype)

    def encode() -> Any:
        return module(projector(tower(pixels).last_hidden_state).view(frames, side, side, hidden))

    def prefill() -> Callable[[], Any]:
        output = model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)

        def decode() -> Any:
            step = output
            for _ in range(NEW_TOKENS):
                token = step.logits[:, -1].argmax(-1, keepdim=True)
                step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
            return step

        return decode

    return Contestant(f"torch, {dtype_name}, {attention}", encode, prefill)
