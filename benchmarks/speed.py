"""From a video file to the answer's tokens, quantised and not, against what people would use instead.

    python benchmarks/speed.py [--size 0.5b] [--frames 8 16 32 64] [--rounds 3] [--new-tokens 32] [--threads 2] [--only NAME …]

All contestants have the same weights, frames and threads. Encoding is measured on clips of ENCODED frames and grows with the frames
(within 2 %: benchmarks/frames.py), so a clip's first token is its frames' share of that and its measured prefill. Prompts are as long
as those of clips of --frames, with our compressed tokens and with transformers' own 196 tokens a frame. The first table has every
contestant at the TARGET_FRAMES of the targets; the second, clips of all lengths for the fastest of ours and of theirs; the third, what
the same clip costs uncompressed, at 4:1 and at 8:1. transformers in eager mode and compiled prefills a short prompt only: thousands of
positions take it minutes. onnxruntime-genai, where it is installed, has the LLM part alone.
The targets are for size 0.5b. Writes speed.png, or speed-tiny.png, beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prepare
from harness import ROOT, TEXT_POSITIONS, Contestant, arguments, compete, log, ratio_row, run_python, table, write_section

SHORT = 256  # positions
CLIP = prepare.WORK / "clip-720p.mp4"
ENCODED = 8  # frames
TARGET_FRAMES = 32
SECTIONS = {"0.5b": "speed", "tiny": "speed-tiny"}  # of benchmarks/results; each has a plot of its name
OURS = {  # name: (bundle, backend, bf16)
    "ONNX Runtime fp32": ("fp32", "onnx", False),
    "ONNX Runtime int8 + int4": ("int8", "onnx", False),
    "OpenVINO fp32": ("fp32", "openvino", False),
    "OpenVINO bf16": ("fp32", "openvino", True),
    "OpenVINO int8 + int4": ("int8", "openvino", False),
    "OpenVINO int8 + int4, rest bf16": ("int8", "openvino", True),
}
OTHERS = {  # name: (attention, dtype, compiled vision tower)
    "transformers eager fp32": ("eager", "float32", False),
    "transformers eager bf16": ("eager", "bfloat16", False),
    "transformers sdpa fp32": ("sdpa", "float32", False),
    "transformers sdpa bf16": ("sdpa", "bfloat16", False),
    "transformers sdpa fp32, torch.compile": ("sdpa", "float32", True),
    "transformers sdpa bf16, torch.compile": ("sdpa", "bfloat16", True),
}
GENAI = "onnxruntime-genai int4"
BEST, PEER = "OpenVINO int8 + int4, rest bf16", "transformers sdpa bf16"  # what the second and the third table measure
COLUMNS = ("", "encode s/frame", "prompt", "prefill s", "first token s", "decode tok/s", "peak RSS GB", "import s", "ready s")


@dataclass(frozen=True)
class _Run:
    """What all tables are about; side: pixels of a frame."""

    checkpoint: Path
    bundles: dict[tuple[str, str], Path]
    prompts: Prompts
    side: int


class Prompts:
    """Positions of prompts about clips of a checkpoint whose encoder gives `side` x `side` tokens a frame."""

    def __init__(self, side: int):
        self.side = side

    def compressed(self, frames: int) -> int:
        """4:1, pooled in windows of two that drop a remainder; and one token that ends the clip, as in all of them."""
        return (self.side // 2) ** 2 * frames + 1 + TEXT_POSITIONS

    def eighth(self, frames: int) -> int:
        return (self.side // 2) ** 2 // 2 * frames + 1 + TEXT_POSITIONS

    def uncompressed(self, frames: int) -> int:
        return self.side**2 * frames + 1 + TEXT_POSITIONS

    def own(self, frames: int) -> int:
        """transformers' own: interpolated to half the side, rounded up."""
        return (-(-self.side // 2)) ** 2 * frames + 1 + TEXT_POSITIONS


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64], help="of the clips that prompts are about")
    parser.add_argument("--new-tokens", type=int, default=32)
    names = [*OURS, *OTHERS, GENAI]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="of the first table's; printed, not written")
    parser.add_argument("--plot", help="internal: draw the points of this JSON file")
    args = parser.parse_args()
    if args.plot:
        _draw(json.loads(args.plot))
        return 0
    checkpoint = prepare.checkpoint(args.size, args.threads)
    config = json.loads((checkpoint / "config.json").read_text())
    side = config["vision_config"]["image_size"]
    prompts = Prompts(side // config["vision_config"]["patch_size"])
    run = _Run(checkpoint, _bundles(args, prompts), prompts, side)
    found = _contestants(args, run)
    chosen = [one for one in found.values() if not args.only or one.name in args.only]
    compete(chosen, args.rounds, args.threads)
    sizes = {name: (_size(run.bundles["vision", name]) + _size(run.bundles["llm", name])) / 1e9 for name in ("fp32", "int8")}
    text = (
        f"Size {args.size}, {args.threads} threads, median of {args.rounds} interleaved rounds (spread: half the range over the median); "
        f"encoding on {ENCODED} frames, prompts of {TARGET_FRAMES} frames, {args.new_tokens} tokens decoded. On disk: fp32 "
        f"{sizes['fp32']:.2f} GB, int8 and int4 {sizes['int8']:.2f} GB.\n\n{table(COLUMNS, _rows(chosen))}"
    )
    if args.only:
        print(text)
        return 0
    ratios = _ratios(found, prompts)
    if args.size == "0.5b":
        text += f"\n\n{table(('ratio', 'measured', 'target', 'met'), ratios)}"
    else:
        text += f"\n\n{table(('ratio', 'measured'), [row[:2] for row in ratios])}"
    if BEST in found:
        text += f"\n\n{_against_frames(args, found, run)}\n\n{_against_compression(args, found[BEST], run)}"
    section = SECTIONS[args.size]
    write_section(section, f"{text}\n\n![first token and decoding](../{section}.png)")
    return 0


def _bundles(args: Any, prompts: Prompts) -> dict[tuple[str, str], Path]:
    longest = max(prompts.uncompressed(TARGET_FRAMES), *map(prompts.compressed, args.frames))
    context = -(-(longest + args.new_tokens + 1) // 256) * 256
    clip, chat = ("--only", "vision"), ("--only", "llm", "--max-context", str(context))
    options = {
        ("vision", "fp32"): clip,
        ("vision", "int8"): (*clip, "--precision", "int8"),
        ("llm", "fp32"): chat,
        ("llm", "int8"): (*chat, "--llm-precision", "int4"),
    }
    found = {key: prepare.bundle(args.size, args.threads, ENCODED, *wanted) for key, wanted in options.items()}
    # The first load of a bundle hashes its files; every later one, which is what the rounds measure, does not.
    for bundle in found.values():
        run_python(["-m", "runtime", "inspect", str(bundle), "--json"], args.threads)
    return found


def _contestants(args: Any, run: _Run) -> dict[str, Contestant]:
    """Those of the first table, by name."""
    common, checkpoint, bundles, prompts = _common(args), run.checkpoint, run.bundles, run.prompts
    ours, own = prompts.compressed(TARGET_FRAMES), prompts.own(TARGET_FRAMES)
    found = {}
    has_openvino = importlib.util.find_spec("openvino") is not None
    for name, (bundle, backend, bf16) in OURS.items():
        if backend == "openvino" and not has_openvino:
            log(f"{name} is left out: openvino is not installed")
            continue
        job = {"vision": str(bundles["vision", bundle]), "llm": str(bundles["llm", bundle]), "backend": backend, "bf16": bf16}
        found[name] = Contestant(name, _job("contestant_runtime.py", common | job | {"prompts": sorted({SHORT, ours})}))
    for name, (attention, dtype, compiled) in OTHERS.items():
        job = {"checkpoint": str(checkpoint), "frames": ENCODED, "attention": attention, "dtype": dtype, "compile": compiled}
        job["prompts"] = [SHORT] if attention == "eager" or compiled else sorted({ours, own})
        found[name] = Contestant(name, _job("contestant_transformers.py", common | job))
    if importlib.util.find_spec("onnxruntime_genai") is None:
        log(f"{GENAI} is left out: onnxruntime-genai is not installed")
        return found
    model = prepare.WORK / f"genai-{checkpoint.name}"
    if not (model / "genai_config.json").exists():
        log("building onnxruntime-genai's model")
        run_python(["benchmarks/contestant_genai.py", "--build", str(checkpoint), str(model)], args.threads)
    found[GENAI] = Contestant(GENAI, _job("contestant_genai.py", common | {"model": str(model), "prompts": [ours]}))
    return found


def _rows(contestants: list[Contestant]) -> list[list]:
    rows = []
    for one in contestants:
        encode = _encode(one) if "encode" in one.runs[0].output else None
        for positions in _lengths(one):
            prefill = _of(one, positions, "prefill")
            first = "" if encode is None or positions == SHORT else encode * TARGET_FRAMES + prefill
            rows.append(
                [
                    one.name,
                    "" if encode is None else f"{encode:.3g} ±{_spread(one, 'encode'):.0%}",
                    str(positions),
                    f"{prefill:.3g} ±{_spread(one, *_path(one, positions, 'prefill')):.0%}",
                    first,
                    _of(one, positions, "tokens_per_second"),
                    one.median("peak_rss") / 1e9,
                    one.median("import"),
                    one.median("ready"),
                ]
            )
    return rows


def _ratios(found: dict[str, Contestant], prompts: Prompts) -> list[list[str]]:
    """Our fastest way on this machine against each peer."""
    ours = [found[name] for name in OURS if name in found]
    quantised = [contestant for contestant in ours if "int8" in contestant.name]
    eager, sdpa, bf16 = (found[f"transformers {name}"] for name in ("eager fp32", "sdpa fp32", "sdpa bf16"))
    equal, own = prompts.compressed(TARGET_FRAMES), prompts.own(TARGET_FRAMES)

    def decode(contestant: Contestant, positions: int = equal) -> float:
        return _of(contestant, positions, "tokens_per_second")

    def first_token(contestant: Contestant, positions: int = equal) -> float:
        return _encode(contestant) * TARGET_FRAMES + _of(contestant, positions, "prefill")

    encode, first, fastest = min(quantised, key=_encode), min(quantised, key=first_token), max(quantised, key=decode)
    quick = max(quantised, key=lambda one: decode(one, SHORT))
    rows = [
        ratio_row(f"encode, {encode.name} against sdpa bf16", _encode(bf16) / _encode(encode), 2),
        ratio_row(f"encode, {encode.name} against eager fp32", _encode(eager) / _encode(encode), 8),
        ratio_row(f"decode after {SHORT}, {quick.name} against eager fp32", decode(quick, SHORT) / decode(eager, SHORT), 8),
        ratio_row(f"decode after {equal:,}, {fastest.name} against sdpa bf16", decode(fastest) / decode(bf16), None),
        ratio_row(f"first token, {first.name} against sdpa bf16, equal tokens", first_token(bf16) / first_token(first), 2.5),
        ratio_row(
            f"first token, {first.name} against sdpa bf16 with its own tokens", first_token(bf16, own) / first_token(first), 4
        ),
        ratio_row("peak RSS fp32, ONNX Runtime as a share of sdpa fp32's", _share(ours[0], sdpa), 0.5, False),
        *(ratio_row(f"peak RSS, {one.name} as a share of sdpa bf16's", _share(one, bf16), 0.5, False) for one in quantised),
    ]
    if GENAI in found:
        rows.append(ratio_row(f"decode after {equal:,}, {fastest.name} against {GENAI}", decode(fastest) / decode(found[GENAI]), 1))
        rows.append(
            ratio_row(
                f"prefill, {first.name} against {GENAI}", _of(found[GENAI], equal, "prefill") / _of(first, equal, "prefill"), None
            )
        )
    return rows


def _against_frames(args: Any, found: dict[str, Contestant], run: _Run) -> str:
    """The way in and the first token of clips of all lengths, one round, and the plot of both."""
    prompts = run.prompts
    way_in = Contestant("way in", _job("way_in.py", {"video": str(CLIP), "frames": args.frames, "size": run.side}))
    best = Contestant(
        "clips of all lengths, ours", _job("contestant_runtime.py", _best_llm(args, run, map(prompts.compressed, args.frames)))
    )
    positions = sorted({*map(prompts.compressed, args.frames), *map(prompts.own, args.frames)})
    theirs = {"checkpoint": str(run.checkpoint), "frames": 1, "attention": "sdpa", "dtype": "bfloat16", "prompts": positions}
    peer = Contestant("clips of all lengths, theirs", _job("contestant_transformers.py", _common(args) | theirs))
    compete([way_in, best, peer], 1, args.threads)
    rows = []
    first: dict[str, list[float]] = {"ours": [], "equal": [], "own": []}
    for at, frames in enumerate(args.frames):
        ours, own = prompts.compressed(frames), prompts.own(frames)
        encode, prefill = _encode(found[BEST]) * frames, _of(best, ours, "prefill")
        equal, wide = (_encode(found[PEER]) * frames + _of(peer, length, "prefill") for length in (ours, own))
        total = encode + prefill
        load = [way_in.median("clips", at, stage) for stage in ("decode", "preprocess")]
        rows.append(
            [str(frames), *load, encode, str(ours - TEXT_POSITIONS), prefill, total, equal, equal / total, wide, wide / total]
        )
        for name, value in (("ours", total), ("equal", equal), ("own", wide)):
            first[name].append(value)
    target = prompts.compressed(TARGET_FRAMES)
    decode = [[one.name, _of(one, target, "tokens_per_second")] for one in found.values() if target in _lengths(one)]
    points = {"frames": args.frames, "first": first, "decode": decode, "size": args.size}
    run_python(["benchmarks/speed.py", "--plot", json.dumps(points)], args.threads)
    columns = ("frames", "decode video s", "preprocess s", "encode + compress s", "visual tokens", "prefill s", "first token s")
    theirs_columns = ("sdpa bf16, equal tokens", "ratio", "sdpa bf16, own tokens", "ratio")
    return (
        f"{BEST} against {PEER}, one round. Decoding and preprocessing, from a 720p H.264 clip of 20 s to `pixel_values`, run beside "
        f"the encoder and are in neither's first token:\n\n{table((*columns, *theirs_columns), rows)}"
    )


def _against_compression(args: Any, best: Contestant, run: _Run) -> str:
    """What the LLM takes of the same clip at other lengths."""
    lengths = {
        "none": run.prompts.uncompressed(TARGET_FRAMES),
        "4:1 (st-gridpool)": run.prompts.compressed(TARGET_FRAMES),
        "8:1 (st-gridpool-8x)": run.prompts.eighth(TARGET_FRAMES),
    }
    ways = [
        Contestant(f"compression {name}", _job("contestant_runtime.py", _best_llm(args, run, [length])))
        for name, length in lengths.items()
    ]
    compete(ways, 1, args.threads)
    rows = []
    for way, (name, length) in zip(ways, lengths.items(), strict=True):
        prefill = _of(way, length, "prefill")
        first, rate = _encode(best) * TARGET_FRAMES + prefill, _of(way, length, "tokens_per_second")
        rows.append([name, str(length - TEXT_POSITIONS), prefill, first, rate, way.median("peak_rss") / 1e9])
    columns = ("compression", "visual tokens", "prefill s", "first token s", "decode tok/s", "peak RSS of the LLM GB")
    return f"{TARGET_FRAMES} frames, {BEST}, one round:\n\n{table(columns, rows)}"


def _common(args: Any) -> dict:
    return {"new_tokens": args.new_tokens, "threads": args.threads}


def _best_llm(args: Any, run: _Run, positions: Iterable[int]) -> dict:
    """The job of BEST's LLM."""
    _, backend, bf16 = OURS[BEST]
    job = {"vision": None, "llm": str(run.bundles["llm", "int8"]), "backend": backend, "bf16": bf16, "prompts": sorted(positions)}
    return _common(args) | job


def _encode(contestant: Contestant) -> float:
    """Seconds a frame."""
    return contestant.median("encode") / ENCODED


def _path(contestant: Contestant, positions: int, what: str) -> tuple:
    return ("prompts", _lengths(contestant).index(positions), what)


def _lengths(contestant: Contestant) -> list[int]:
    return [prompt["positions"] for prompt in contestant.runs[0].output["prompts"]]


def _of(contestant: Contestant, positions: int, what: str) -> float:
    return contestant.median(*_path(contestant, positions, what))


def _spread(contestant: Contestant, *path: str | int) -> float:
    values = contestant.values(*path)
    return (max(values) - min(values)) / 2 / contestant.median(*path)


def _share(one: Contestant, other: Contestant) -> float:
    return one.median("peak_rss") / other.median("peak_rss")


def _size(path: Path) -> int:
    manifest = json.loads((path / "manifest.json").read_text())
    return sum(entry["size"] for name, entry in manifest["files"].items() if not name.startswith("reference/"))


def _job(script: str, job: dict) -> list[str]:
    return [f"benchmarks/{script}", json.dumps(job)]


def _draw(points: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    lines = (("own", f"{PEER}, its own tokens", "#b0442f"), ("equal", f"{PEER}, equal tokens", "#d99a4e"))
    for name, label, colour in (*lines, ("ours", BEST, "#2f6fb0")):
        left.plot(points["frames"], points["first"][name], "o-", color=colour, label=label)
    left.set(title="first token, seconds", xlabel="frames", xticks=points["frames"])
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.3)
    names, rates = zip(*sorted(points["decode"], key=lambda pair: pair[1]), strict=True)
    right.barh(names, rates, color=["#2f6fb0" if name in OURS else "#999999" for name in names])
    right.set(title=f"decoding after {TARGET_FRAMES} frames, tokens a second")
    right.tick_params(axis="y", labelsize=8)
    right.grid(alpha=0.3, axis="x")
    figure.suptitle(f"Size {points['size']}")
    figure.savefig(ROOT / "benchmarks" / f"{SECTIONS[points['size']]}.png", dpi=130)


if __name__ == "__main__":
    sys.exit(main())
