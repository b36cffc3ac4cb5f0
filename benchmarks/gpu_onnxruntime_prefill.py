"""How a prompt is best cut for a GPU, and what the host adds to a step: chunks of prefill, a new conversation, the logits' way out.

The runtime prefills in chunks that were chosen on CPUs. Here the same prompt, the clip's tokens and the text, in chunks of several
sizes, over one cache that is filled anew each time.

S prompt positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gpu_onnxruntime_report import Report
from gpu_onnxruntime_sessions import milliseconds
from harness import TEXT_POSITIONS, log, table
from workload import prompt_embeddings

CHUNKS = (128, 256, 512, 1024, 2048, 8192)


def prefill_of(args: argparse.Namespace, report: Report) -> None:
    for directory in args.bundles:
        report.attempt(f"prefill of {directory.name}", lambda d=directory: _measure(d, args, report))


def _measure(directory: Path, args: argparse.Namespace, report: Report) -> None:
    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder, decoder_feeds

    bundle = Bundle.open(directory)
    decoder = LocalDecoder.open(bundle, "onnx", EngineOptions(device=args.device))
    embeddings = prompt_embeddings(bundle.manifest.tokens_per_clip + TEXT_POSITIONS, bundle.manifest.hidden_size)
    conversation, positions = decoder.conversation(), embeddings.shape[1]
    chunks = [chunk for chunk in CHUNKS if chunk < positions] + [positions]
    numbers: dict[str, Any] = {"positions": positions, "prefill ms": {}}
    for chunk in chunks:
        log(f"prefill in chunks of {chunk}")
        title = f"prefill of {directory.name} in chunks of {chunk}"
        spent = report.attempt(title, lambda c=chunk: milliseconds(lambda: _again(conversation, embeddings, 0, c), args.rounds, 1))
        numbers["prefill ms"][chunk] = spent
    rows = [[f"{chunk:,}", "failed" if spent is None else spent] for chunk, spent in numbers["prefill ms"].items()]
    one = embeddings[:, :1]
    logits = _again(conversation, one, positions, 1)
    feeds = decoder_feeds(one.astype(decoder.dtype), [positions])
    steps = {
        "a decode step of the runtime": lambda: _again(conversation, one, positions, 1),
        "of that the engine": lambda: decoder.engine.run(feeds, conversation.state),
        "choosing the id": logits.argmax,
        "a new conversation": decoder.conversation,
    }
    numbers["host ms"] = {name: milliseconds(run, args.rounds * 2) for name, run in steps.items()}
    text = f"{table(('chunk', 'ms'), rows)}\n\n{table(('', 'ms'), [list(item) for item in numbers['host ms'].items()])}"
    report.section(f"prefill of {positions:,} positions, {directory.name}", text, numbers)


def _again(conversation: Any, embeddings: np.ndarray, length: int, chunk: int) -> np.ndarray:
    """Write over what follows `length`."""
    conversation.length = length
    return conversation.extend(embeddings, chunk)
