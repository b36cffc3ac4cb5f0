"""Everything that can be refused before weights are read, in the order of what it costs.

    check_options(options)                     from the options alone, before torch is imported
    plan = make_plan(options, kind, checkpoint)    from the checkpoint's JSON files, tokenizer and chat template, then from the
                                                   headers of its weight files

What can still fail after that is in the weights' values, in the machine (memory, disk) or a fault of ours: a graph that does not
compute what torch computes, a pass that finds nothing.

T frames, N visual tokens, H, W patch rows and columns.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from export.quantize import llm_precision
from runtime.core.errors import BundleError, CheckpointError, ExportError, PromptError, missing_package, nearest
from runtime.core.progress import log

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint
    from export.compress import Compressor
    from export.families import LLMInfo, VisionInfo
    from export.frames import FrameInput
    from export.options import ExportOptions

QUESTION = "What happens in the video?"  # of the prompt that the export compares the LLM on

_ANSWER_POSITIONS = 1024  # room for question and answer in the default context
_SHORTEST_ANSWER = 16  # positions that any context must have room for: so many ids are compared with transformers'
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", "onnxruntime")  # loaded later
_CHOICES = {
    "place": ("after-projector", "before-projector"),
    "precision": ("fp32", "fp16", "int8"),
    "attention": ("portable", "standard"),
    "only": (None, "vision", "llm"),
}


@dataclass(frozen=True)
class Plan:
    """What an export will write, as far as it is known without weights.

    preset         preset or spec, as it was asked for; compress: its modules
    frames         T
    input          what makes pixel values of uint8 frames in the graph; None where the runtime does
    tokens         N, tokens that close a clip included
    max_context    KV positions; 0 without an LLM
    not_applied    settings of generation_config.json that the runtime does not apply
    """

    preset: str
    compress: Compressor
    vision: VisionInfo
    frames: int
    input: FrameInput | None
    tokens: int
    max_context: int
    not_applied: list[str]


def check_options(options: ExportOptions) -> None:
    """Refuse what is wrong whatever the checkpoint is."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "an export", "export,runtime")
    for name, known in _CHOICES.items():
        if getattr(options, name) not in known:
            raise ExportError(f'--{name} is "{getattr(options, name)}"{nearest(str(getattr(options, name)), filter(None, known))}')
    llm_precision(options.of_llm)
    if options.error_budget is not None and not 0 < options.error_budget < math.inf:
        raise ExportError(f"--error-budget is {options.error_budget:g}, expected a share above 0 such as 0.05")
    if options.calibrate is not None and not (options.calibrate and Path(options.calibrate).is_dir()):
        raise ExportError(f"--calibrate {options.calibrate} is no directory; give one with a few typical clips")
    if options.frames is not None:
        _check_frames(options.frames, "--frames")
    _refuse_without_effect(options)
    if options.frames is not None:
        _check_apart(options, options.frames)
    if options.max_context is not None and options.max_context < 1:
        raise ExportError(f"--max-context is {options.max_context}, expected at least 1 and room for the clip's tokens")
    if options.tensorrt is not None:
        _check_tensorrt(options, options.tensorrt)


def _refuse_without_effect(options: ExportOptions) -> None:
    """Refuse what this export has no use for. Precisions and the like of the half that --only leaves out are taken all the same, so that
    one line of options serves both halves."""
    for name, chosen in (("split", options.split), ("input", options.input != "pixels")):
        if chosen and options.only == "llm":
            raise ExportError(f"--{name} is about the vision half, which --only llm leaves out; drop one of them")
    for name, value in (("calibrate", options.calibrate), ("error-budget", options.error_budget)):
        if value is not None and not options.quantizes:
            ways = {"vision": "--precision int8", "llm": "--llm-precision int8 or int4"}
            remedy = f"pass {ways.get(options.only or '', ', or '.join(ways.values()))}, or leave it out"
            raise ExportError(f"--{name} is for quantisation, and nothing is quantised here; {remedy}")


def make_plan(options: ExportOptions, kind: ModuleType, checkpoint: Checkpoint) -> Plan:
    """Check a checkpoint against the options; CheckpointError, ExportError or SpecError names the file or option.

    kind: the model family, see export/families/__init__.py.
    """
    from export.compress import make
    from export.frames import FrameInput, source_size

    preset = kind.COMPRESS if options.compress is None else options.compress
    vision = kind.describe_vision(checkpoint)
    llm = kind.describe_llm(checkpoint) if options.only != "vision" else None
    frames = _frames(options, vision, checkpoint)
    size = source_size(options.input, vision.preprocessing["size"])
    compress = make(preset, frames=frames, height=vision.grid[0], width=vision.grid[1])
    tokens = compress.num_tokens + vision.closing_tokens
    prompt_ids = check_prompt(checkpoint, llm, kind.HUB_ID) if llm else 0
    max_context = _max_context(options.max_context, tokens, prompt_ids, llm.max_positions) if llm else 0
    frame_input = FrameInput(vision.preprocessing, size) if size else None
    if options.calibrate and options.quantizes:
        from export.quantize.calibration import Clips

        sized = {"frames": list(size)} if size else {}
        Clips(vision.preprocessing | sized, Path(options.calibrate)).check(frames)

    if options.only != "llm":
        kind.check_vision_weights(checkpoint)
    if options.only != "vision":
        kind.check_llm_weights(checkpoint)
    not_applied = _log_settings(checkpoint, llm) if llm else []
    return Plan(preset, compress, vision, frames, frame_input, tokens, max_context, not_applied)


def check_prompt(checkpoint: Checkpoint, llm: LLMInfo, published: str) -> int:
    """Render and tokenize a question as the runtime does; CheckpointError where that gives no prompt around one clip.

    published: a checkpoint whose files work, to name in the message. Returns the prompt's tokens without the clip's.
    """
    from runtime.prompt.ids import prompt_ids
    from runtime.prompt.template import ChatTemplate, question_about_clip
    from runtime.prompt.tokenizer import Tokenizer

    chat = llm.chat
    template_file = checkpoint.path / chat.template_file
    tokenizer, template = Tokenizer(checkpoint.path / "tokenizer.json"), ChatTemplate(chat.template)
    try:
        vocabulary = tokenizer.vocabulary
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    beyond = {token: at for token, at in vocabulary.items() if at >= llm.vocabulary and not _is_placeholder(at, checkpoint)}
    if beyond:
        token = max(beyond, key=beyond.__getitem__)
        raise CheckpointError(
            f'{tokenizer.path} has "{token}" as token {beyond[token]}, the LLM has {llm.vocabulary} (vocab_size in config.json); '
            "copy the tokenizer of the same checkpoint"
        )
    try:
        template.render(question_about_clip(QUESTION))
        template.prefix_and_suffix()
    except PromptError as error:
        raise CheckpointError(f"{template_file}: {error}") from None
    try:
        return len(prompt_ids(tokenizer, template, chat.video_token_id, question_about_clip(QUESTION)))
    except PromptError as error:
        raise CheckpointError(
            f'{template_file}: {error}; a part {{"type": "video"}} of a message must become {chat.video_token}: '
            f"copy the chat template of a checkpoint for video, such as {published}"
        ) from None


def _is_placeholder(token: int, checkpoint: Checkpoint) -> bool:
    """Whether a token stands for an image or a video, whose embedding is never read."""
    keys = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return token in [checkpoint.config().get(key) for key in keys]


def _log_settings(checkpoint: Checkpoint, llm: LLMInfo) -> list[str]:
    """Log what of generation_config.json the runtime will do and what it will not; the names of the latter."""
    from export.families.chat import settings_not_applied

    file, names = checkpoint.path / "generation_config.json", settings_not_applied(checkpoint)
    if llm.chat.repetition_penalty != 1:
        log(f"{file}: repetition_penalty {llm.chat.repetition_penalty:g} goes into the bundle")
    if names:
        log(
            f"warning: {file} sets {', '.join(names)}, which the runtime does not apply: "
            "its answers can differ from those of transformers' generate"
        )
    return names


def _check_tensorrt(options: ExportOptions, version: str) -> None:
    """Refuse options whose graphs need a newer ONNX opset than the parser of that TensorRT takes."""
    from export.decoder import OPSET
    from export.quantize.qdq import OPSET_OF_INT4
    from export.tensorrt import PARSERS, release_of

    newest = PARSERS[release_of(version)].max_opset
    needed = {}  # {option: (opset, what to take instead)}
    if OPSET[options.attention] > newest:
        needed[f"--attention {options.attention}"] = OPSET[options.attention], "--attention portable"
    if options.only != "vision" and options.of_llm.startswith("int4") and newest < OPSET_OF_INT4:
        needed[f"--llm-precision {options.of_llm}"] = OPSET_OF_INT4, "--llm-precision int8"
    if not needed:
        return
    highest = max(opset for opset, _ in needed.values())
    first = next((release for release, parser in PARSERS.items() if parser.max_opset >= highest), None)
    needs = " and ".join(f"{option} needs ONNX opset {opset}" for option, (opset, _) in needed.items())
    instead = " and ".join(instead for _, instead in needed.values())
    newer = f", or for TensorRT {first} or newer" if first else ""
    raise ExportError(f"{needs}, TensorRT {version} takes up to {newest}; export with {instead}{newer}")


def _frames(options: ExportOptions, vision: VisionInfo, checkpoint: Checkpoint) -> int:
    if options.frames is not None:
        return options.frames
    _check_frames(vision.frames, f"{checkpoint.path}: num_frames of its preprocessor config")
    _check_apart(options, vision.frames)
    return vision.frames


def _check_apart(options: ExportOptions, frames: int) -> None:
    """ExportError where a graph of one frame would have to be taken apart into frames."""
    apart = {"--split": options.split, "--precision int8": options.precision == "int8" and options.only != "llm"}
    for name, chosen in apart.items():
        if chosen and frames < 2:
            raise ExportError(f"{name} takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more")


def _check_frames(frames: int, name: str) -> None:
    if not 1 <= frames <= 1024:
        pass_it = "" if name == "--frames" else "; pass --frames"
        raise ExportError(f"{name} is {frames}, expected 1 to 1024{pass_it}")


def _max_context(chosen: int | None, tokens: int, prompt_ids: int, limit: int) -> int:
    """KV positions for `tokens` visual tokens in a prompt of `prompt_ids` others; limit: that the LLM was made for."""
    needed = tokens + prompt_ids + _SHORTEST_ANSWER
    if needed > limit:
        raise ExportError(
            f"the clip has {tokens} visual tokens, the LLM was made for {limit} positions; take fewer --frames or a stronger --compress"
        )
    if chosen is None:
        return min(limit, -(-max(needed, tokens + _ANSWER_POSITIONS) // 256) * 256)
    if chosen <= tokens:
        raise ExportError(f"--max-context is {chosen}, the clip alone has {tokens} visual tokens; expected more than that")
    if chosen < needed:
        raise ExportError(
            f"--max-context is {chosen}, the clip has {tokens} visual tokens and a short question and answer {needed - tokens}; "
            f"expected at least {needed}"
        )
    if chosen > limit:
        raise ExportError(f"--max-context is {chosen}, the LLM was made for {limit} positions at most")
    return chosen
