"""Continuous batching: tokens/s of 1, 2, 4 and 8 chats that decode at once, and whether their ids are those of each alone.

python benchmarks/server_batch.py [--size 0.5b] [--rounds 3] [--threads 2]
The LLM in int4, on each CPU backend. Every chat has a different prompt, as long as a clip's tokens and a question. Prompts stay
in their slots between the rounds, so that the rounds measure decoding. The baseline is the graph for one conversation.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time

import prepare
from harness import Contestant, arguments, compete, ratio_row, table, write_section

FRAMES, NEW_TOKENS, CHATS = 8, 32, (1, 2, 4, 8)
WAYS = {"ONNX Runtime": ("onnx", False), "OpenVINO": ("openvino", False), "OpenVINO bf16": ("openvino", True)}  # backend, bf16


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--contestant", help="for the benchmark itself: a bundle and one of WAYS, as JSON")
    args = parser.parse_args()
    if args.contestant:
        path, way = json.loads(args.contestant)
        print(json.dumps(measure(path, *WAYS[way], args.threads, args.rounds)))
        return 0
    bundle = prepare.bundle(args.size, args.threads, FRAMES, "--only", "llm", "--llm-precision", "int4")
    options = ["--threads", str(args.threads), "--rounds", str(args.rounds)]
    ways = [
        Contestant(way, ["benchmarks/server_batch.py", "--contestant", json.dumps([str(bundle), way]), *options])
        for way, (backend, _) in WAYS.items()
        if backend != "openvino" or importlib.util.find_spec("openvino")
    ]
    compete(ways, 1, args.threads)
    found = [way.runs[0].output for way in ways]
    rows = [["graph for one conversation", *(one["alone"] for one in found)]]
    rows += [[f"batch of {n}", *(one["together"][str(n)] for one in found)] for n in CHATS]
    rows.append(["peak RSS, GB", *(way.runs[0].peak_rss / 1e9 for way in ways)])
    ratios = []
    for way, one in zip(ways, found, strict=True):
        eight = one["together"]["8"]
        ratios.append(ratio_row(f"{way.name}: 8 chats against one, both in the batch graph", eight / one["together"]["1"], 2.5))
        ratios.append(ratio_row(f"{way.name}: 8 chats against one in the graph for one conversation", eight / one["alone"], 2.5))
        same = "yes" if not one["different"] else "no"
        ratios.append([f"{way.name}: answers of {one['answers']} whose ids are not those alone", str(one["different"]), "0", same])
    write_section(
        "server-batch",
        f"Size {args.size} in int4, prompts of {found[0]['positions']} positions, {NEW_TOKENS} tokens an answer, {args.threads} threads, "
        f"median of {args.rounds} rounds, 8 slots of {found[0]['max_context']} positions; tokens a second of all chats together.\n\n"
        f"{table(['decoding', *(way.name for way in ways)], rows)}\n\n{table(['', 'measured', 'target', 'met'], ratios)}",
    )
    return 0


def measure(path: str, backend: str, bf16: bool, threads: int, rounds: int) -> dict:
    from statistics import median

    from workload import prompt_embeddings

    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder
    from runtime.llm.generation import Request
    from runtime.llm.scheduler import Scheduler
    from runtime.llm.slots import SlotDecoder
    from runtime.prompt import Prompt

    bundle, options = Bundle.open(path), EngineOptions("cpu", threads, bf16)
    prompt, positions = Prompt(bundle), bundle.manifest.tokens_per_clip + 32
    prompt.eos = frozenset()
    base = prompt_embeddings(positions, bundle.manifest.hidden_size)[0]
    requests = [Request([(n, row) for row in range(positions)], base * (1 + 0.1 * n), NEW_TOKENS) for n in range(max(CHATS))]

    # Two chats in the graph for one conversation; every chat by itself in the batch graph; then together.
    alone = LocalDecoder.open(bundle, backend, options)
    reference, speeds = [], []
    for request in requests[:2]:
        conversation = alone.conversation()
        logits = conversation.extend(request.embeddings[None])
        start = time.perf_counter()
        ids = [int(logits.argmax())]
        while len(ids) < NEW_TOKENS:
            ids.append(int(conversation.extend(prompt.embeddings[ids[-1:]][None]).argmax()))
        reference.append(ids)
        speeds.append((NEW_TOKENS - 1) / (time.perf_counter() - start))
    alone.engine.close()
    del alone, conversation

    scheduler = Scheduler(SlotDecoder.open(bundle, max(CHATS), backend, options), prompt)
    expected = [_ask(scheduler, [request])[0].ids for request in requests]  # and every slot has its prompt now
    different = sum(ids != other for ids, other in zip(expected, reference, strict=False))
    answers = len(reference)
    together: dict[int, list[float]] = {n: [] for n in CHATS}
    for _ in range(rounds):
        for count in CHATS:
            start = time.perf_counter()
            generations = _ask(scheduler, requests[:count])
            together[count].append(count * NEW_TOKENS / (time.perf_counter() - start))
            different += sum(g.ids != ids for g, ids in zip(generations, expected, strict=False))
            answers += count
            assert all(g.cached == positions - 1 for g in generations)
    scheduler.close()
    return {
        "alone": median(speeds),
        "together": {count: median(values) for count, values in together.items()},
        "different": different,
        "answers": answers,
        "positions": positions,
        "max_context": bundle.max_context,
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
