"""What an export will write, from the checkpoint's JSON files, tokenizer and chat template, then the headers of its weight files.

Everything that these make impossible is refused here, cheapest checks first, before a weight is read. What can still fail
afterwards lies in the weights' values, in the machine (memory, disk), or is a bug of ours: a graph that does not compute what torch
computes, a pass that finds nothing to rewrite.

T frames, N visual tokens, H, W patch rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

from export.families import LLMInfo, VisionInfo
from export.families.chat import Chat, settings_not_applied
from export.options import MOST_FRAMES, ExportOptions, check_several_frames
from runtime.bundle.manifest import Preprocessing, PromptInfo
from runtime.core.errors import BundleError, CheckpointError, ExportError, PromptError
from runtime.core.progress import log
from runtime.prompt import PromptIds, prompt_ids
from runtime.prompt.template import ChatTemplate, question_about_clip
from runtime.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint
    from export.compress import Compressor
    from export.frames import FrameInput

CHAT_TEMPLATE = "chat_template.jinja"  # the bundle's file

_QUESTION = "What happens in the video?"  # of the prompt that the export compares the LLM on
_ANSWER_POSITIONS = 1024  # room for question and answer in the default context
_SHORTEST_ANSWER = 16  # positions that any context must have room for: as many ids are compared with transformers'


@dataclass(frozen=True)
class LLMPlan:
    """What the export of the LLM needs to know beforehand."""

    chat: Chat
    prompt: PromptInfo  # the manifest's
    question: PromptIds  # of the prompt that the LLM is compared on
    max_context: int  # KV positions


@dataclass(frozen=True)
class Plan:
    """What is exported, as far as it is known without weights."""

    options: ExportOptions
    family: ModuleType  # see export/families/__init__.py
    checkpoint: Checkpoint
    preset: str  # preset or spec, as the user wrote it
    compress: Compressor
    vision: VisionInfo
    frames: int  # T
    input: FrameInput | None  # what makes pixel values of uint8 frames in the graph; None where the runtime does
    preprocessing: Preprocessing  # the checkpoint's, and the size of frames where the graph takes those
    tokens: int  # N, tokens that close a clip included
    llm: LLMPlan | None  # None for --only vision
    not_applied: list[str]  # settings of generation_config.json that the runtime does not apply


def make_plan(options: ExportOptions, family: ModuleType, checkpoint: Checkpoint) -> Plan:
    """Check a checkpoint against the options; CheckpointError, ExportError or SpecError names the file or option."""
    from export.compress import make
    from export.frames import FrameInput, source_size

    preset = family.COMPRESS if options.compress is None else options.compress
    vision = family.describe_vision(checkpoint)
    language = family.describe_llm(checkpoint) if options.only != "vision" else None
    frames = _frames(options, vision, checkpoint)
    size = source_size(options.input, vision.preprocessing.size)
    compress = make(preset, frames=frames, height=vision.grid[0], width=vision.grid[1])
    tokens = compress.num_tokens + vision.closing_tokens
    llm = _plan_llm(options, checkpoint, language, tokens, family.HUB_ID) if language else None
    frame_input = FrameInput(vision.preprocessing, size) if size else None
    preprocessing = replace(vision.preprocessing, frames=size)
    if options.calibrate and options.quantizes:
        from export.quantize.clips import Clips

        Clips(preprocessing, options.calibrate).check(frames)
    if options.only != "llm":
        family.check_vision_weights(checkpoint)
    if options.only != "vision":
        family.check_llm_weights(checkpoint)
    not_applied = _log_settings(checkpoint, llm.chat) if llm else []
    return Plan(options, family, checkpoint, preset, compress, vision, frames, frame_input, preprocessing, tokens, llm, not_applied)


def _plan_llm(options: ExportOptions, checkpoint: Checkpoint, info: LLMInfo, tokens: int, published: str) -> LLMPlan:
    question, around = check_prompt(checkpoint, info, published)
    chat = info.chat
    ends, penalty = tuple(chat.eos_token_ids), chat.repetition_penalty
    prompt = PromptInfo(CHAT_TEMPLATE, chat.video_token, chat.video_token_id, ends, penalty, around_question=around)
    return LLMPlan(chat, prompt, question, _max_context(options.max_context, tokens, len(question), info.max_positions))


def check_prompt(checkpoint: Checkpoint, llm: LLMInfo, published: str) -> tuple[PromptIds, tuple[str, str] | None]:
    """Render and tokenize a question as the runtime does; CheckpointError where that gives no prompt around one clip.

    published: a checkpoint whose files work, to name in the message. Returns the ids of the prompt that the LLM is compared on, and
    the prompt's text before and after any question (None where the template changes questions).
    """
    chat = llm.chat
    template_file = checkpoint.path / chat.template_file
    tokenizer, template = Tokenizer(checkpoint.path / "tokenizer.json"), ChatTemplate(chat.template)
    question = question_about_clip(_QUESTION)
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
        template.render(question)
        around = template.prefix_and_suffix()
    except PromptError as error:
        raise CheckpointError(f"{template_file}: {error}") from None
    try:
        return prompt_ids(tokenizer, template, chat.video_token_id, question), around
    except PromptError as error:
        raise CheckpointError(
            f'{template_file}: {error}; a part {{"type": "video"}} of a message must become {chat.video_token}: '
            f"copy the chat template of a checkpoint for video, such as {published}"
        ) from None


def _is_placeholder(token: int, checkpoint: Checkpoint) -> bool:
    """Whether a token marks an image or a video: its embedding is never read."""
    keys = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return token in [checkpoint.config().get(key) for key in keys]


def _log_settings(checkpoint: Checkpoint, chat: Chat) -> list[str]:
    """Log which settings of generation_config.json the runtime applies and which it does not; the names of the latter."""
    file, names = checkpoint.path / "generation_config.json", settings_not_applied(checkpoint)
    if chat.repetition_penalty is not None:
        log(f"{file}: repetition_penalty {chat.repetition_penalty:g} goes into the bundle")
    if names:
        log(
            f"warning: {file} sets {', '.join(names)}, which the runtime does not apply: "
            "its answers can differ from those of transformers' generate"
        )
    return names


def _frames(options: ExportOptions, vision: VisionInfo, checkpoint: Checkpoint) -> int:
    if options.frames is not None:
        return options.frames
    if vision.frames > MOST_FRAMES:
        named = f"{checkpoint.path}: num_frames of its preprocessor config is {vision.frames}"
        raise ExportError(f"{named}, expected at most {MOST_FRAMES}; pass --frames")
    check_several_frames(options, vision.frames)
    return vision.frames


def _max_context(chosen: int | None, tokens: int, prompt_ids: int, limit: int) -> int:
    """KV positions for `tokens` visual tokens in a prompt of `prompt_ids` others; limit: positions that the LLM was trained for."""
    needed = tokens + prompt_ids + _SHORTEST_ANSWER
    if needed > limit:
        raise ExportError(
            f"the clip has {tokens} visual tokens, the LLM was trained for {limit} positions; use fewer --frames or a stronger --compress"
        )
    if chosen is None:
        return min(limit, -(-max(needed, tokens + _ANSWER_POSITIONS) // 256) * 256)
    if chosen < needed:
        raise ExportError(
            f"--max-context is {chosen}, the clip has {tokens} visual tokens and a short question and answer {needed - tokens}; "
            f"expected at least {needed}"
        )
    if chosen > limit:
        raise ExportError(f"--max-context is {chosen}, the LLM was trained for at most {limit} positions")
    return chosen
