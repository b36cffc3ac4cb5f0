"""Continuous batching: tokens/s of 1, 2, 4 and 8 chats that decode at once, and whether their ids are those of each alone.

python benchmarks/server_batch.py [--size 0.5b] [--rounds 3] [--threads 2]
Every chat has a prompt of its own, as long as a clip's tokens and a question. Prompts stay in their slots between the rounds, so
that the rounds measure decoding. The baseline is the graph for one conversation.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import prepare
from harness import Contestant, arguments, compete, ratio_row, table, write_section

FRAMES, NEW_TOKENS, CHATS = 8, 32, (1, 2, 4, 8)


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--contestant", help="for the benchmark itself: the bundle")
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(measure(args.contestant, args.threads, args.rounds)))
        return 0
    bundle = prepare.bundle(args.size, args.threads, FRAMES)
    command = [
        "benchmarks/server_batch.py",
        "--contestant",
        str(bundle),
        "--threads",
        str(args.threads),
        "--rounds",
        str(args.rounds),
    ]
    one = Contestant("batching", command)
    compete([one], 1, args.threads)
    found = one.runs[0].output
    rows = [["graph for one conversation", 1, found["alone"], 1.0, found["alone"]]]
    rows += [
        [
            f"batch of {n}",
            n,
            found["together"][str(n)],
            found["together"][str(n)] / found["together"]["1"],
            found["together"][str(n)] / n,
        ]
        for n in CHATS
    ]
    text = (
        f"Size {args.size}, prompts of {found['positions']} positions, {NEW_TOKENS} tokens an answer, {args.threads} threads, median of "
        f"{args.rounds} interleaved rounds. Peak RSS {one.runs[0].peak_rss / 1e9:.2f} GB with 8 slots of {found['max_context']} positions.\n\n"
        + table(["decoding", "chats", "tok/s", "against 1", "tok/s a chat"], rows)
        + "\n\n"
        + table(
            ["", "measured", "target", "met"],
            [
                ratio_row("8 chats, tok/s against one, both in the batch graph", found["together"]["8"] / found["together"]["1"], 2.5),
                ratio_row("8 chats, tok/s against one in the graph for one conversation", found["together"]["8"] / found["alone"], 2.5),
                ["answers whose ids differ from the unbatched ones", str(found["different"]), "0", "yes" if not found["different"] else "no"],
            ],
        )
    )  # fmt: skip
    write_section("server-batch", text)
    return 0


def measure(path: str, threads: int, rounds: int) -> dict:
    from statistics import median

    from workload import prompt_embeddings

    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder
    from runtime.llm.scheduler import Request, Scheduler
    from runtime.llm.slots import SlotDecoder
    from runtime.prompt import Prompt

    bundle, options = Bundle.open(path), EngineOptions(threads=threads)
    prompt, positions = Prompt(bundle), bundle.manifest.tokens_per_clip + 32
    prompt.eos = frozenset()
    base = prompt_embeddings(positions, bundle.manifest.hidden_size)[0]
    requests = [Request([(n, row) for row in range(positions)], base * (1 + 0.1 * n), NEW_TOKENS) for n in range(max(CHATS))]

    # Two chats in the graph for one conversation; every chat by itself in the batch graph; then together.
    alone = LocalDecoder.open(bundle, "onnx", options)
    reference, speeds = [], []
    for request in requests[:2]:
        conversation = alone.conversation()
        logits = conversation.extend(request.embeddings[None])
        start = time.perf_counter()
        ids = conversation.generate(
            logits, lambda t: prompt.embeddings[[t]][None], lambda x: int(x.argmax()), frozenset(), NEW_TOKENS
        )
        reference.append(list(ids))
        speeds.append((NEW_TOKENS - 1) / (time.perf_counter() - start))
    alone.engine.close()
    del alone, conversation

    scheduler = Scheduler(SlotDecoder.open(bundle, max(CHATS), "onnx", options), prompt)
    expected = [_ask(scheduler, [request])[0].ids for request in requests]  # and every slot has its prompt now
    different = sum(ids != other for ids, other in zip(expected, reference, strict=False))
    together: dict[int, list[float]] = {n: [] for n in CHATS}
    for _ in range(rounds):
        for count in CHATS:
            start = time.perf_counter()
            generations = _ask(scheduler, requests[:count])
            together[count].append(count * NEW_TOKENS / (time.perf_counter() - start))
            different += sum(g.ids != ids for g, ids in zip(generations, expected, strict=False))
            assert all(g.cached == positions - 1 for g in generations)
    scheduler.close()
    return {
        "alone": median(speeds),
        "together": {count: median(values) for count, values in together.items()},
        "different": different,
        "positions": positions,
        "max_context": bundle.manifest.limits["max_context"],
    }


def _ask(scheduler, requests) -> list:
    done = threading.Semaphore(0)
    failed = []

    def emit(piece) -> None:
        if piece.error:
            failed.append(piece.error)
        if piece.last:
            done.release()

    generations = [scheduler.submit(request, emit) for request in requests]
    for _ in requests:
        done.acquire()
    if failed:
        raise failed[0]
    return generations


if __name__ == "__main__":
    sys.exit(main())
