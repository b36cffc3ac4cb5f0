"""From frames to answer, quantised and not, against what people would use instead: encode, prefill, first token, decode, memory, start.

    python benchmarks/speed.py [--size 0.5b] [--frames 8] [--prompt-frames 32] [--rounds 3] [--new-tokens 32] [--threads 2]

All contestants have the same weights, frames and threads. Encoding is measured on clips of --frames; prompts are as long as those of a clip
of --prompt-frames, with our compressed tokens and with transformers' own 196 tokens a frame, and the first token of such a clip is its
frames' encoding and its prefill (encoding grows with the frames: benchmarks/frames.py). onnxruntime-genai, where it is installed, has the LLM part alone.
transformers in eager mode prefills a short prompt only: thousands of positions take it minutes.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import prepare
from harness import Contestant, arguments, compete, ratio_row, run_python, say, table, write_section

TEXT_POSITIONS = 32  # chat template and question
SHORT = 256  # positions
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
    "transformers sdpa fp32": ("sdpa", "float32", False),
    "transformers sdpa bf16": ("sdpa", "bfloat16", False),
    "transformers sdpa bf16, torch.compile": ("sdpa", "bfloat16", True),
}
GENAI = "onnxruntime-genai int4"
COLUMNS = ("", "encode s/frame", "prompt", "prefill s", "first token s", "decode tok/s", "peak RSS GB", "import s", "ready s")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prompt-frames", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants; printed, not written")
    args = parser.parse_args()

    checkpoint = prepare.checkpoint(args.size, args.threads)
    config = json.loads((checkpoint / "config.json").read_text())
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    pooled = -(-side // 2)  # a side of the half grid
    prompts = {
        "ours": (side // 2) ** 2 * args.prompt_frames + 1 + TEXT_POSITIONS,  # one newline token
        "own": pooled**2 * args.prompt_frames + 1 + TEXT_POSITIONS,
    }
    context = -(-(max(prompts.values()) + args.new_tokens + 1) // 256) * 256
    clip, chat = ("--only", "vision"), ("--only", "llm", "--max-context", str(context))
    bundles = {
        ("vision", "fp32"): prepare.bundle(args.size, args.threads, args.frames, *clip),
        ("vision", "int8"): prepare.bundle(args.size, args.threads, args.frames, *clip, "--precision", "int8"),
        ("llm", "fp32"): prepare.bundle(args.size, args.threads, args.frames, *chat),
        ("llm", "int8"): prepare.bundle(args.size, args.threads, args.frames, *chat, "--llm-precision", "int4"),
    }
    # The first load of a bundle hashes its files; every later one, which is what the rounds measure, does not.
    for bundle in bundles.values():
        run_python(["-m", "runtime", "inspect", str(bundle), "--json"], args.threads)

    common = {"new_tokens": args.new_tokens, "threads": args.threads}
    contestants = _contestants(common, checkpoint, bundles, prompts, args)
    if args.only:
        contestants = [contestant for contestant in contestants if contestant.name in args.only]
    compete(contestants, args.rounds, args.threads)
    rows = [row for contestant in contestants for row in _rows(contestant, args)]
    sizes = {name: (_size(bundles["vision", name]) + _size(bundles["llm", name])) / 1e9 for name in ("fp32", "int8")}
    text = (
        f"Size {args.size}, {args.threads} threads, median of {args.rounds} interleaved rounds; encoding on {args.frames} frames, prompts of "
        f"{args.prompt_frames} frames, {args.new_tokens} tokens decoded. On disk: fp32 {sizes['fp32']:.2f} GB, "
        f"int8 and int4 {sizes['int8']:.2f} GB.\n\n{table(COLUMNS, rows)}"
    )
    if args.only:
        print(text)
        return 0
    ratios = _ratios({contestant.name: contestant for contestant in contestants}, args.prompt_frames, args.frames)
    write_section("speed", f"{text}\n\n{table(('ratio', 'measured', 'target', 'met'), ratios)}")
    return 0


def _contestants(
    common: dict, checkpoint: Path, bundles: dict[tuple[str, str], Path], prompts: dict[str, int], args
) -> list[Contestant]:
    found = []
    has_openvino = importlib.util.find_spec("openvino") is not None
    for name, (bundle, backend, bf16) in OURS.items():
        if backend == "openvino" and not has_openvino:
            say(f"{name} is left out: openvino is not installed")
            continue
        job = {"vision": str(bundles["vision", bundle]), "llm": str(bundles["llm", bundle]), "backend": backend, "bf16": bf16}
        found.append(Contestant(name, _job("contestant_runtime.py", common | job | {"prompts": [prompts["ours"]]})))
    for name, (attention, dtype, compiled) in OTHERS.items():
        job = {"checkpoint": str(checkpoint), "frames": args.frames, "attention": attention, "dtype": dtype, "compile": compiled}
        asked = [SHORT] if attention == "eager" or compiled else [prompts["ours"], prompts["own"]]
        found.append(Contestant(name, _job("contestant_transformers.py", common | job | {"prompts": asked})))
    if importlib.util.find_spec("onnxruntime_genai") is None:
        say(f"{GENAI} is left out: onnxruntime-genai is not installed")
        return found
    model = prepare.WORK / f"genai-{checkpoint.name}"
    if not (model / "genai_config.json").exists():
        say("building onnxruntime-genai's model")
        run_python(["benchmarks/contestant_genai.py", "--build", str(checkpoint), str(model)], args.threads)
    job = {"model": str(model), "prompts": [prompts["ours"]]}
    return [*found, Contestant(GENAI, _job("contestant_genai.py", common | job))]


def _rows(contestant: Contestant, args) -> list[list]:
    output = contestant.runs[0].output
    encode = contestant.median("encode") / args.frames if "encode" in output else None
    rows = []
    for index, prompt in enumerate(output["prompts"]):
        prefill = contestant.median("prompts", index, "prefill")
        first = encode * args.prompt_frames + prefill if encode is not None and prompt["positions"] != SHORT else ""
        rows.append(
            [
                contestant.name,
                "" if encode is None else encode,
                str(prompt["positions"]),
                prefill,
                first,
                contestant.median("prompts", index, "tokens_per_second"),
                contestant.median("peak_rss") / 1e9,
                contestant.median("import"),
                contestant.median("ready"),
            ]
        )
    return rows


def _ratios(found: dict[str, Contestant], prompt_frames: int, frames: int) -> list[list[str]]:
    """Our fastest way on this machine against each peer."""
    ours = [found[name] for name in OURS if name in found]
    quantised = [contestant for contestant in ours if "int8" in contestant.name]
    eager, sdpa, bf16 = (found[name] for name in list(OTHERS)[:3])

    def first_token(contestant: Contestant, prompt: int = 0) -> float:
        return contestant.median("encode") / frames * prompt_frames + contestant.median("prompts", prompt, "prefill")

    def decode(contestant: Contestant) -> float:
        return contestant.median("prompts", 0, "tokens_per_second")

    encode = min(quantised, key=lambda one: one.median("encode"))
    fastest = max(quantised, key=decode)
    first = min(quantised, key=first_token)
    rows = [
        ratio_row(f"encode, {encode.name} against sdpa bf16", bf16.median("encode") / encode.median("encode"), 2),
        ratio_row(f"encode, {encode.name} against eager fp32", eager.median("encode") / encode.median("encode"), 8),
        ratio_row(f"decode, {fastest.name} against eager fp32 at {SHORT} positions", decode(fastest) / decode(eager), 8),
        ratio_row(f"first token, {first.name} against sdpa bf16, equal tokens", first_token(bf16, 0) / first_token(first), 2.5),
        ratio_row(f"first token, {first.name} against sdpa bf16 with its own tokens", first_token(bf16, 1) / first_token(first), 4),
        ratio_row(
            "peak RSS fp32, ONNX Runtime as a share of sdpa fp32's",
            ours[0].median("peak_rss") / sdpa.median("peak_rss"),
            0.5,
            False,
        ),
        ratio_row(
            f"peak RSS, {first.name} as a share of sdpa bf16's", first.median("peak_rss") / bf16.median("peak_rss"), 0.5, False
        ),
    ]
    if GENAI in found:
        rows.append(ratio_row(f"decode, {fastest.name} against {GENAI}", decode(fastest) / decode(found[GENAI]), 1))
    return rows


def _size(path: Path) -> int:
    manifest = json.loads((path / "manifest.json").read_text())
    return sum(entry["size"] for name, entry in manifest["files"].items() if not name.startswith("reference/"))


def _job(script: str, job: dict) -> list[str]:
    return [f"benchmarks/{script}", json.dumps(job)]


if __name__ == "__main__":
    sys.exit(main())
