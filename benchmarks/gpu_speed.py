"""From frames to the first token on a GPU, at 0.5B and 7B shapes: encode, compress, prefill, decode.

    python benchmarks/gpu_speed.py [--size 0.5b 7b] [--frames 32] [--rounds 5] [--compress st-gridpool] [--bundle DIR]
    python benchmarks/gpu_speed.py --device cpu --size tiny --frames 4 --rounds 1      # shows that it runs, no more

Needs torch with CUDA and transformers. Contestants: transformers with sdpa in bf16 and its own pooling; the same towers with this
project's compression between them, as torch modules, compiled, and with the fused kernel (`pip install "st-gridpool[plugin]"`); and a
bundle that was exported elsewhere, on ONNX Runtime's CUDA provider and in TensorRT. What can't run is left out and says why. Weights
are random; every time is the median of rounds in turns, the GPU waited for.

T frames, N visual tokens, D hidden.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import TEXT_POSITIONS, hardware, say, table
from random_checkpoint import SIZES, config
from workload import pixel_values, prompt_embeddings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NEW_TOKENS = 32
COLUMNS = ("size", "", "visual tokens", "encode ms", "compress ms", "prefill ms", "first token ms", "decode tok/s")
_SHAPES = {"7b": "7b-vision"}  # of SIZES, where it has another name


@dataclass
class Way:
    """One way from frames to the first token: seconds of each round by stage. A step takes what the one before gave."""

    name: str
    tokens: int
    encode: Callable[[], Any]
    compress: Callable[[Any], Any] | None
    prefill: Callable[[], Callable[[], None]]  # returns what decodes NEW_TOKENS after it
    spent: dict[str, list[float]] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=["tiny", "0.5b", "7b"], default=["0.5b", "7b"])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compress", default="st-gridpool")
    parser.add_argument("--bundle", type=Path, help="a bundle with both halves to run through this project's runtime")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here; --device cpu --size tiny shows that the script runs", file=sys.stderr)
        return 2
    rows = []
    with torch.inference_mode():
        for size in args.size:
            ways = _torch_ways(torch, size, args)
            _race(torch, ways, args)
            rows += [_row(size, way) for way in ways]
            del ways
            if args.device == "cuda":
                torch.cuda.empty_cache()
    if args.bundle:
        ways = _bundle_ways(args)
        _race(torch, ways, args)
        rows += [_row(args.bundle.name, way) for way in ways]
    where = torch.cuda.get_device_name() if args.device == "cuda" else hardware()
    print(f"{where}, torch {torch.__version__}; {args.frames} frames, `{args.compress}`, medians of {args.rounds} rounds\n")
    print(table(COLUMNS, rows))
    return 0


def _torch_ways(torch: Any, size: str, args: argparse.Namespace) -> list[Way]:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    from export.compress import make

    say(f"making a random {size} model")
    shape = SIZES[_SHAPES.get(size, size)]
    dtype = torch.bfloat16
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        settings = LlavaOnevisionConfig(**config(shape))
        model = LlavaOnevisionForConditionalGeneration._from_config(settings, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    side, hidden = shape.image // 14, shape.llm.width
    pixels = torch.from_numpy(pixel_values(args.frames, shape.image)).to(args.device, dtype)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    module = make(args.compress, frames=args.frames, height=side, width=side).to(args.device).eval()
    compiled_tower, compiled_module = torch.compile(tower), torch.compile(module)

    def encoder(run: Any) -> Callable[[], Any]:
        return lambda: projector(run(pixels).last_hidden_state).view(args.frames, side, side, hidden)

    def prefill(tokens: int) -> Callable[[], Callable[[], None]]:
        embeddings = torch.from_numpy(prompt_embeddings(tokens + TEXT_POSITIONS, hidden)).to(args.device, dtype)
        return lambda: _decoder(model, embeddings)

    features = encoder(tower)()
    ours, own = len(module(features)), args.frames * (-(-side // 2)) ** 2 + 1
    ways = [
        Way("transformers, own pooling", own, lambda: model.get_video_features(pixels[None]), None, prefill(own)),
        Way("ours in torch", ours, encoder(tower), module, prefill(ours)),
        Way("ours, torch.compile", ours, encoder(compiled_tower), compiled_module, prefill(ours)),
    ]
    kernel = _kernel(args)
    return [*ways, Way("ours, fused kernel", ours, encoder(compiled_tower), kernel, prefill(ours))] if kernel else ways


def _kernel(args: argparse.Namespace) -> Callable[[Any], Any] | None:
    """The fused kernel for this compression; None, said aloud, where it has none or can't run."""
    from export.compress import expand
    from plugins import spec_from_text, st_gridpool
    from runtime.errors import UserError

    try:
        if args.device != "cuda":
            raise UserError("it needs a GPU")
        spec = spec_from_text(expand(args.compress))
        st_gridpool(_probe(), spec)
        return lambda features: st_gridpool(features, spec)
    except (UserError, ValueError) as error:
        say(f"the fused kernel is left out: {error}")
        return None


def _probe() -> Any:
    import torch

    return torch.zeros(16, 8, 8, 64, device="cuda", dtype=torch.bfloat16)


def _decoder(model: Any, embeddings: Any) -> Callable[[], None]:
    """Prefill; what is returned decodes greedily."""
    output = model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        step = output
        for _ in range(NEW_TOKENS):
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)

    return decode


def _bundle_ways(args: argparse.Namespace) -> list[Way]:
    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.errors import UserError
    from runtime.llm.decoder import LocalDecoder
    from runtime.prompt import Prompt
    from runtime.tools import reference
    from runtime.vision import VisionEncoder

    bundle = Bundle.open(args.bundle)
    clip = reference.clip(bundle)
    tokens = bundle.manifest.tokens_per_clip
    embeddings = prompt_embeddings(tokens + TEXT_POSITIONS, bundle.manifest.hidden_size)
    ways = []
    for backend in ("onnx", "tensorrt", "tensorrt-rtx"):
        try:
            options = EngineOptions(device=args.device)
            vision, decoder = VisionEncoder.open(bundle, backend, options), LocalDecoder.open(bundle, backend, options)
        except UserError as error:
            say(f"{backend} is left out: {error}")
            continue
        rows = Prompt(bundle).embeddings

        def prefill(decoder: Any = decoder, rows: np.ndarray = rows) -> Callable[[], None]:
            conversation = decoder.conversation()
            logits = conversation.extend(embeddings)

            def decode() -> None:
                made = logits
                for _ in range(NEW_TOKENS):
                    made = conversation.extend(rows[[int(made.argmax())]][None])

            return decode

        ways.append(
            Way(f"bundle, {backend} (encode with compress)", tokens, lambda vision=vision: vision.tokens(clip), None, prefill)
        )
    return ways


def _race(torch: Any, ways: list[Way], args: argparse.Namespace) -> None:
    """Every way once a round, in turn; a round before does not count, it compiles and warms up."""

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        if args.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = run()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, result

    for number in range(args.rounds + 1):
        for way in ways:
            say(f"round {number} of {args.rounds}: {way.name}")
            seconds: dict[str, float] = {}
            seconds["encode"], features = timed(way.encode)
            if way.compress is not None:
                compress = way.compress
                seconds["compress"], _ = timed(lambda compress=compress, features=features: compress(features))
            del features
            seconds["prefill"], decode = timed(way.prefill)
            seconds["decode"], _ = timed(decode)
            if number:
                for stage, one in seconds.items():
                    way.spent.setdefault(stage, []).append(one)


def _row(size: str, way: Way) -> list[Any]:
    seconds = {stage: median(spent) for stage, spent in way.spent.items()}
    first = [sum(stages) for stages in zip(*(spent for stage, spent in way.spent.items() if stage != "decode"), strict=True)]
    milliseconds = [1000 * seconds[stage] if stage in seconds else "" for stage in ("encode", "compress", "prefill")]
    return [size, way.name, str(way.tokens), *milliseconds, 1000 * median(first), NEW_TOKENS / seconds["decode"]]


if __name__ == "__main__":
    sys.exit(main())
