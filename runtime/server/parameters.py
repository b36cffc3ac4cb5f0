"""Parameters that clients send and this server has no use for, each with the values that change nothing here.

null, an empty list and an empty object change nothing, whatever the name, known here or not. Any other value would change the answer:
it is refused, by name and with what to do instead.
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
        if isinstance(value, dict):
            value = {name: one for name, one in value.items() if one is not None}
        # of the same kind too: 1 is equal to true
        same = self.values is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)
        return same or is_empty(value)


def is_empty(value: Any) -> bool:
    return value is None or value in ([], {})


def _all(*names: str) -> dict[str, Inert]:
    return {name: Inert(None) for name in names}


_TOOLS, _SAMPLING = "this server calls no tools; leave it out", "leave it out, or use temperature and top_p"

# of OpenAI
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
    **_all("id", "chat_id", "session_id", "request_id", "rid", "id_slot", "cache_salt", "cache_prompt", "keep_alive", "ttl"),
    **_all(
        "repeat_last_n", "mirostat_tau", "mirostat_eta", "xtc_threshold", "dry_base", "dry_allowed_length", "dry_penalty_last_n"
    ),
    **_all("separate_reasoning", "stream_reasoning", "include_reasoning"),  # there is none to set apart
    "top_k": Inert((-1, 0), _SAMPLING),
    "min_p": Inert((0,), _SAMPLING),
    "typical_p": Inert((1,), _SAMPLING),
    "tfs_z": Inert((1,), _SAMPLING),
    "top_a": Inert((0,), _SAMPLING),
    "xtc_probability": Inert((0,), _SAMPLING),
    "dry_multiplier": Inert((0,), _SAMPLING),
    "dynatemp_range": Inert((0,), _SAMPLING),
    "repetition_penalty": Inert((1,), _SAMPLING),
    "repeat_penalty": Inert((1,), _SAMPLING),
    "length_penalty": Inert((1,), _SAMPLING),
    "mirostat": Inert((0,), _SAMPLING),
    "best_of": Inert((1,), _SAMPLING),
    "use_beam_search": Inert((False,), _SAMPLING),
    "ignore_eos": Inert((False,), "answers end where the model ends them; leave it out"),
    "n_predict": Inert((-1,), "leave it out, or use max_tokens"),
    "min_tokens": Inert((0,), "answers end where the model ends them; leave it out"),
    "stop_token_ids": Inert((), "leave it out, or use stop with text"),
    "bad_words": Inert(),
    "allowed_token_ids": Inert(),
    "logits_processors": Inert(),
    "prompt_logprobs": Inert(),
    "echo": Inert((False,)),
    "add_generation_prompt": Inert((True,)),
    "continue_final_message": Inert((False,)),
    "do_preprocess": Inert((True,)),
    "add_special_tokens": Inert((False,)),
    "skip_special_tokens": Inert((True,)),
    "spaces_between_special_tokens": Inert((True,)),
    "include_stop_str_in_output": Inert((False,)),
    "no_stop_trim": Inert((False,)),
    "truncate_prompt_tokens": Inert((-1,)),
    "chat_template": Inert(),
    "chat_template_kwargs": Inert(({"enable_thinking": False},)),
    "enable_thinking": Inert((False,), "these models do not reason apart; leave it out"),
    "thinking": Inert(({"type": "disabled"},), "these models do not reason apart; leave it out"),
    "documents": Inert(),
    "options": Inert((), "give its values as parameters of the request"),
    **dict.fromkeys(
        (
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
            *("grammar", "json_schema", "regex", "ebnf"),
        ),
        Inert(("",), "answers are plain text here; leave it out and ask for the format in words"),
    ),
    "guided_decoding_backend": Inert(None),
    "return_token_ids": Inert((False,)),
    "return_tokens_as_token_ids": Inert((False,)),
    "return_hidden_states": Inert((False,)),
    "return_progress": Inert((False,)),
    "timings_per_token": Inert((False,)),
    "post_sampling_probs": Inert((False,)),
    "n_probs": Inert((0,), "there are no log probabilities here; leave it out"),
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
    "cache_control": Inert(None),
}

# of a text
TEXT: Mapping[str, Inert] = _all("cache_control", "annotations")

# of a clip: all are sampled to the bundle's number and size of frames, and identified by their content
CLIP: Mapping[str, Inert] = _all(
    "uuid", "format", "filename", "detail", "size", "max_pixels", "min_pixels", "total_pixels", "resized_height", "resized_width",
    "max_frames", "min_frames", "do_sample_frames", "cache_control",
)  # fmt: skip
