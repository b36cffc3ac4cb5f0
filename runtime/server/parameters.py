"""Parameters that clients send and this server has no use for, each with the values that change nothing here.

null, an empty list and an empty object change nothing for any of them. Any other value would change the answer: it is refused,
by name and with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Inert:
    """values: those that change nothing, None for all of them; remedy: what to do instead of sending another."""

    values: tuple[Any, ...] | None = ()
    remedy: str = "leave it out"

    def accepts(self, value: Any) -> bool:
        # of the same kind too: 1 is equal to true
        same = self.values is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)
        return same or value is None or value in ([], {})


def _all(*names: str) -> dict[str, Inert]:
    return {name: Inert(None) for name in names}


_TOOLS, _SAMPLING = "this server calls no tools; leave it out", "leave it out, or use temperature and top_p"

# OpenAI's own
OPENAI: Mapping[str, Inert] = {
    **_all("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "metadata"),
    "store": Inert((False,), "nothing is stored here; leave it out"),
    "n": Inert((1,), "ask once for each answer"),
    "logprobs": Inert((False,), "there are no log probabilities here; leave it out"),
    "top_logprobs": Inert((0,), "there are no log probabilities here; leave it out"),
    "presence_penalty": Inert((0,), _SAMPLING),
    "frequency_penalty": Inert((0,), _SAMPLING),
    "logit_bias": Inert((), _SAMPLING),
    "response_format": Inert(({"type": "text"},), "answers are plain text here; leave it out and ask for the format in words"),
    "tools": Inert((), _TOOLS),
    "tool_choice": Inert(("none", "auto"), _TOOLS),
    "parallel_tool_calls": Inert((True, False), _TOOLS),
    "functions": Inert((), _TOOLS),
    "function_call": Inert(("none", "auto"), _TOOLS),
    "modalities": Inert((["text"],), "answers are text here; leave it out"),
    "audio": Inert(),
    "prediction": Inert(),
    "web_search_options": Inert(),
    "reasoning_effort": Inert(("none",), "these models do not reason apart; leave it out"),
    "verbosity": Inert(("medium",), "leave it out and ask for a short or long answer in words"),
}

# of vLLM, llama.cpp, Ollama, Open WebUI and others
EXTENSIONS: Mapping[str, Inert] = {
    **_all("id", "chat_id", "session_id", "request_id", "cache_salt", "cache_prompt", "keep_alive", "repeat_last_n"),
    "top_k": Inert((-1, 0), _SAMPLING),
    "min_p": Inert((0,), _SAMPLING),
    "typical_p": Inert((1,), _SAMPLING),
    "tfs_z": Inert((1,), _SAMPLING),
    "repetition_penalty": Inert((1,), _SAMPLING),
    "repeat_penalty": Inert((1,), _SAMPLING),
    "length_penalty": Inert((1,), _SAMPLING),
    "mirostat": Inert((0,), _SAMPLING),
    "best_of": Inert((1,), _SAMPLING),
    "use_beam_search": Inert((False,), _SAMPLING),
    "ignore_eos": Inert((False,), "answers end where the model ends them; leave it out"),
    "min_tokens": Inert((0,), "answers end where the model ends them; leave it out"),
    "stop_token_ids": Inert((), "leave it out, or use stop with text"),
    "bad_words": Inert(),
    "allowed_token_ids": Inert(),
    "logits_processors": Inert(),
    "prompt_logprobs": Inert(),
    "echo": Inert((False,)),
    "add_generation_prompt": Inert((True,)),
    "continue_final_message": Inert((False,)),
    "add_special_tokens": Inert((False,)),
    "skip_special_tokens": Inert((True,)),
    "spaces_between_special_tokens": Inert((True,)),
    "include_stop_str_in_output": Inert((False,)),
    "truncate_prompt_tokens": Inert((-1,)),
    "chat_template": Inert(),
    "chat_template_kwargs": Inert(({"enable_thinking": False},)),
    "documents": Inert(),
    "options": Inert((), "give its values as parameters of the request"),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
        Inert((), "answers are plain text here; leave it out and ask for the format in words"),
    ),
    "guided_decoding_backend": Inert(None),
    "return_token_ids": Inert((False,)),
    "return_tokens_as_token_ids": Inert((False,)),
    "priority": Inert((0,), "requests are served in the order of their arrival; leave it out"),
}

# of a message, as `message.model_dump()` of an answer has them
MESSAGE: Mapping[str, Inert] = {
    "refusal": Inert(("",), "leave it out, or say it as content"),
    "annotations": Inert(None),
    "audio": Inert(),
    "function_call": Inert((), _TOOLS),
    "tool_calls": Inert((), _TOOLS),
    "reasoning": Inert(("",), "these models do not reason apart; leave it out"),
    "reasoning_content": Inert(("",), "these models do not reason apart; leave it out"),
}

# of a clip: every one becomes the bundle's number of frames, of the bundle's size, and is known by its content
CLIP: Mapping[str, Inert] = _all(
    "uuid", "format", "filename", "detail", "size", "max_pixels", "min_pixels", "total_pixels", "resized_height", "resized_width",
    "max_frames", "min_frames",
)  # fmt: skip
