"""From frames to the first token on a GPU, at the shapes of real models in bf16: encode, compress, prefill, first token, decode.

    python benchmarks/gpu_speed.py [--size 0.5b 7b qwen3-vl-2b] [--frames 8 32 64] [--rounds 5] [--json PATH]
    python benchmarks/gpu_speed.py --plan [--tflops 750] [--bandwidth 3.0]        # the arithmetic alone; needs no GPU
    python benchmarks/gpu_speed.py --device cpu --size tiny --frames 4 --rounds 1  # shows that it runs, no more

Needs torch with CUDA and transformers. Ways: transformers with sdpa and its own pooling; the same, encoder and pooling compiled;
this project's compression as a compiled torch module; with the fused kernel (`pip install "st-gridpool[plugin]"`); with the
kernel and an encoder that reuses what did not change between frames. What can't run is left out and says why. Rows are printed,
and the JSON is rewritten, as soon as a size at a number of frames is done, the 32-frame ones first: a time limit costs what was
not reached. The kernel's tokens must be those of the compiled module; the exit status is 1 where they are not, and where nothing
ran.

T frames, N visual tokens, D hidden.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import gpu_plan
from gpu_plan import KERNEL, OURS, SHAPES, Shape
from gpu_plugin import TOLERANCE
from gpu_timing import synchronised
from harness import hardware, log, table
from json_file import write_json

NEW_TOKENS = 32
DTYPE = "bfloat16"  # of the models, see gpu_models.py
FIRST_FRAMES = 32  # measured before the other numbers of frames
STAGES = ("encode", "compress", "prefill")  # whose sum is the first token
COLUMNS = (
    *("size", "frames", "", "visual tokens", "encode ms", "compress ms", "prefill ms", "first token ms"),
    *("decode tok/s", "peak GB"),
)
NOTES = """\
- Random weights; every time is the median of rounds in turns, every second one reversed, the GPU waited for before and after; a
  round before them compiles and warms up. First token is encode + compress + prefill of a round.
- What is read was written just before, as in use, so what is smaller than the L2 (50 MB on an H100) may still be there.
  {inputs}.
- Own pooling of LLaVA-OneVision: bilinear by two and a newline; within encode in the first way, as transformers runs it. Own
  pooling of Qwen3-VL: its merger, within encode. Its deepstack features are computed in every way, and added to the LLM's layers
  in none.
- transformers encodes Qwen3-VL frame by frame and reads their lengths back in each layer; the compiled tower attends over all at
  once.
- Compiled: encoders layer by layer with the frames' number symbolic, own pooling and st-gridpool each as one module for each shape;
  the LLM is eager.
- Decode is transformers' eager loop, bound by launches, measured once for each number of visual tokens and printed once.
- Peak is the most that torch had allocated during a way, weights of the whole model and its input included; the kernel
  takes its scratch memory (31 MB at 7b, 32 frames) from the driver, and that is not counted."""


def main() -> int:
    args = _arguments()
    if args.plan:
        blocks = _blocks(args.size, args.frames)
        print(
            f"At {args.tflops:g} TFLOP/s and {args.bandwidth:g} TB/s; floors, not predictions: eager decode is bound by launches\n"
        )
        rows = [row for size, frames in blocks for row in gpu_plan.lines(SHAPES[size], frames, args.tflops, args.bandwidth)]
        print(table(gpu_plan.COLUMNS, rows))
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here; --device cpu --size tiny shows that the script runs", file=sys.stderr)
        return 2
    with torch.inference_mode():
        return _run(torch, args)


def _run(torch: Any, args: argparse.Namespace) -> int:
    import transformers
    from gpu_models import compiles, make_model, reason

    # One cache of compiled code serves all shapes of a module; beyond its limit torch would go on eagerly, without a word.
    torch._dynamo.config.recompile_limit = 64
    why_not = "left out by --no-compile" if args.no_compile else compiles(args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else hardware()
    report: dict[str, Any] = {"device": where, "torch": torch.__version__, "transformers": transformers.__version__}
    report |= {"rounds": args.rounds, "new_tokens": NEW_TOKENS, "not_compiled": why_not, "blocks": []}
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, bf16, medians of {args.rounds} rounds")
    print(f"\n{NOTES.format(inputs=_inputs(args))}" + (f"\n- Nothing is compiled: {why_not}" if why_not else ""))
    print(f"\n{table(COLUMNS, [])}", flush=True)
    model, made = None, ""
    for size, frames in _blocks(args.size, args.frames):
        shape, began = SHAPES[size], time.perf_counter()
        try:
            if made != size:
                model, made = None, ""
                _free(torch, args.device)
                log(f"making a random {size} model")
                model, made = make_model(shape, args.device), size
            block = _block(torch, model, shape, frames, args, not why_not)
        except Exception as error:  # a model that can't be made stops no other
            block = {"size": size, "frames": frames, "ways": [], "left_out": {"all": reason(error)}}
        block["wall_seconds"] = time.perf_counter() - began
        report["blocks"].append(block)
        print("\n".join(table(COLUMNS, rows_of(block)).splitlines()[2:]), flush=True)
        write_json(args.json, report)
        _free(torch, args.device)
    ran = any(block["ways"] for block in report["blocks"])
    return 0 if ran and all(kernel_is_right(block) for block in report["blocks"]) else 1


def kernel_is_right(block: dict[str, Any]) -> bool:
    """False where its tokens are too far from the compiled module's, or NaN; True where it did not run."""
    difference = block.get("kernel_difference")
    return difference is None or difference < TOLERANCE[DTYPE]


def rows_of(block: dict[str, Any]) -> list[list[Any]]:
    """A block's part of the table: a row for each way, for what was left out, and for how near the kernel is."""
    size, frames, decoded = block["size"], str(block["frames"]), set()
    rows = []
    for way in block["ways"]:
        rows.append(_row(block, way, way["tokens"] not in decoded))
        decoded.add(way["tokens"])
    rows += [[size, frames, name, f"left out: {why}"] for name, why in block["left_out"].items()]
    difference = block.get("kernel_difference")
    if difference is not None:
        verdict = "" if kernel_is_right(block) else ": **WRONG**"
        words = (
            f"kernel against compiled: largest difference / largest value {difference:.1e}, allowed {TOLERANCE[DTYPE]:.1e}{verdict}"
        )
        rows.append([size, frames, words])
    return rows


def _block(torch: Any, model: Any, shape: Shape, frames: int, args: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """One size at one number of frames: its ways, each with the seconds of every round."""
    from gpu_models import contestants, decode, prefill, reason

    field = contestants(model, shape, frames, args.device, compiled)
    racing, tokens, decoded = list(field.ways), {}, {}

    def once(way: Any, warm: bool, first: bool) -> None:
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = {}
        seconds["encode"], made = synchronised(torch, args.device, way.encode)
        if way.compress is not None:
            seconds["compress"], made = synchronised(torch, args.device, lambda: way.compress(made))
        seconds["prefill"], output = synchronised(torch, args.device, lambda: prefill(model, made))
        if warm:
            if not bool(output.logits.isfinite().all()):
                raise ValueError("its logits are not all finite")
            tokens[way.name] = made.float().cpu() if way.name in (field.names.get(OURS), field.names.get(KERNEL)) else None
        if first and way.tokens not in decoded:
            decoded[way.tokens], _ = synchronised(torch, args.device, lambda: decode(model, output, NEW_TOKENS))
        elif warm or first:
            decode(model, output, 1)
        if warm:
            return
        for stage, one in seconds.items():
            way.spent.setdefault(stage, []).append(one)
        if args.device == "cuda":
            way.peak_bytes = max(way.peak_bytes or 0, torch.cuda.max_memory_allocated())

    for number in range(args.rounds + 1):
        for way in list(racing) if number % 2 else list(reversed(racing)):
            log(f"{shape.name}, {frames} frames, round {number} of {args.rounds}: {way.name}")
            try:
                once(way, warm=number == 0, first=number == 1)
            except Exception as error:  # out of memory, a compiler's error: the others go on
                field.left_out[way.name] = reason(error)
                racing.remove(way)
                _free(torch, args.device)
    counters = torch._dynamo.utils.counters
    block: dict[str, Any] = {"size": shape.name, "frames": frames, "grid": shape.grid(frames), "left_out": field.left_out}
    block["compiled_graphs"] = counters["stats"]["unique_graphs"]  # so far, in this process
    block["graph_breaks"] = sum(counters["graph_break"].values())
    block["kernel_difference"] = _difference(tokens.get(field.names.get(OURS)), tokens.get(field.names.get(KERNEL)))
    expected = {field.names.get(way.way): way for way in gpu_plan.expectations(shape, frames)}
    block["ways"] = [_way(way, decoded.get(way.tokens), expected[way.name]) for way in racing]
    return block


def _way(way: Any, decoded: float | None, expected: gpu_plan.Expected) -> dict[str, Any]:
    rounds = zip(*(way.spent[stage] for stage in STAGES if stage in way.spent), strict=True)
    return {
        "name": way.name,
        "tokens": way.tokens,
        "seconds": way.spent,
        "first": [sum(stages) for stages in rounds],
        "decode_seconds": decoded,
        "peak_bytes": way.peak_bytes,
        "encoder_rows": expected.rows,
        "encode_flop": expected.encode_flop,
        "prefill_flop": expected.prefill_flop,
        "compress_bytes": expected.compress_bytes,
        "weight_bytes": expected.weight_bytes,
    }


def _row(block: dict[str, Any], way: dict[str, Any], with_decode: bool) -> list[Any]:
    stages = [1000 * median(way["seconds"][stage]) if stage in way["seconds"] else "" for stage in STAGES]
    decode = NEW_TOKENS / way["decode_seconds"] if with_decode and way["decode_seconds"] else ""
    peak = way["peak_bytes"] / 1e9 if way["peak_bytes"] else ""
    name, frames, tokens = way["name"], str(block["frames"]), str(way["tokens"])
    return [block["size"], frames, name, tokens, *stages, 1000 * median(way["first"]), decode, peak]


def _difference(one: Any, other: Any) -> float | None:
    """Largest difference of two ways' tokens, as a share of the largest magnitude."""
    return None if one is None or other is None else float((one - other).abs().max() / one.abs().max())


def _blocks(sizes: Sequence[str], frames: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The most wanted number of frames at every size, then the others."""
    first = FIRST_FRAMES if FIRST_FRAMES in frames else frames[0]
    yield from ((size, first) for size in sizes)
    yield from ((size, count) for size in sizes for count in frames if count != first)


def _inputs(args: argparse.Namespace) -> str:
    """What the encoder and what compression reads, in MB."""
    count, parts = max(args.frames), []
    for shape in (SHAPES[size] for size in args.size):
        steps, rows, columns = shape.grid(count)
        pixels, features = 2 * count * 3 * shape.pixels**2 / 1e6, 2 * steps * rows * columns * shape.llm.width / 1e6
        parts.append(f"{shape.name} {pixels:.3g} and {features:.3g} MB")
    return f"Pixels and features at {count} frames: {', '.join(parts)}"


def _free(torch: Any, device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=["0.5b", "7b", "qwen3-vl-2b"])
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every number of every round")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--plan", action="store_true", help="print FLOPs, bytes and the times they take at least; runs nothing")
    parser.add_argument("--tflops", type=float, default=750, help="for --plan: TFLOP/s in bf16")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="for --plan: TB/s of a device copy")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, expected at least 1")
    for size in args.size:
        for frames in args.frames:
            if frames < 1 or frames % SHAPES[size].frames_a_step:
                parser.error(f"--frames {frames}: {size} takes a multiple of {SHAPES[size].frames_a_step}, at least one")
    return args


if __name__ == "__main__":
    sys.exit(main())
