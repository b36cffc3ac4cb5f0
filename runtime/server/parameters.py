"""Parameters that clients send but this server does not support, each with the values that change nothing here.

null, an empty list and an empty object change nothing, whatever the name, known here or not. Any other value would change the
answer, so it is refused by name, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Inert:
    """values: those that change nothing, None for all of them; remedy: what to do instead of sending another value."""

    values: tuple[Any, ...] | None = ()
    remedy: str = "leave it out"

    def accepts(self, value: Any) -> bool:
        if isinstance(value, dict):
            value = {name: one for name, one in value.items() if one is not None}
        # of the same kind too, because 1 == True
        same = self.values is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)
        return same or is_empty(value)


def is_empty(value: Any) -> bool:
    return value is None or value in ([], {})


def _each(names: str, values: tuple[Any, ...] | None = (), remedy: str = "leave it out") -> dict[str, Inert]:
    return dict.fromkeys(names.split(), Inert(values, remedy))


_SAMPLING = "leave it out, or use temperature and top_p"
_TEXT = "answers are plain text here; leave it out and ask for the format in words"
_TOOLS = "this server calls no tools; leave it out"
_LOGPROBS = "this server returns no log probabilities; leave it out"
_REASONING = "these models have no separate reasoning; leave it out"
_END = "answers end where the model ends them; leave it out"

# of OpenAI
OPENAI: Mapping[str, Inert] = {
    **_each("user safety_identifier prompt_cache_key prompt_cache_retention service_tier metadata", None),
    **_each("audio prediction web_search_options"),
    **_each("store", (False,), "this server stores nothing; leave it out"),
    **_each("n", (1,), "send one request for each answer"),
    **_each("logprobs", (False,), _LOGPROBS),
    **_each("top_logprobs", (0,), _LOGPROBS),
    **_each("presence_penalty frequency_penalty", (0,), _SAMPLING),
    **_each("logit_bias", (), _SAMPLING),
    **_each("response_format", ({"type": "text"},), _TEXT),
    **_each("modalities", (["text"],), _TEXT),
    **_each("tools functions", (), _TOOLS),
    **_each("tool_choice function_call", ("none", "auto"), _TOOLS),
    **_each("parallel_tool_calls", (True, False), _TOOLS),
    **_each("reasoning_effort", ("none",), _REASONING),
    **_each("verbosity", ("medium",), "leave it out and ask for a short or long answer in words"),
}

# of vLLM, llama.cpp, Ollama, Open WebUI and others
EXTENSIONS: Mapping[str, Inert] = {
    **_each("id chat_id session_id request_id rid id_slot cache_salt cache_prompt keep_alive ttl guided_decoding_backend", None),
    **_each("repeat_last_n mirostat_tau mirostat_eta xtc_threshold dry_base dry_allowed_length dry_penalty_last_n", None),
    **_each("separate_reasoning stream_reasoning include_reasoning", None),
    **_each("top_k", (-1, 0), _SAMPLING),
    **_each("min_p top_a xtc_probability dry_multiplier dynatemp_range mirostat", (0,), _SAMPLING),
    **_each("typical_p tfs_z repetition_penalty repeat_penalty length_penalty best_of", (1,), _SAMPLING),
    **_each("use_beam_search", (False,), _SAMPLING),
    **_each("ignore_eos", (False,), _END),
    **_each("min_tokens", (0,), _END),
    **_each("n_predict", (-1,), "leave it out, or use max_tokens"),
    **_each("stop_token_ids", (), "leave it out, or use stop with text"),
    **_each("echo continue_final_message add_special_tokens include_stop_str_in_output no_stop_trim return_token_ids", (False,)),
    **_each("return_tokens_as_token_ids return_hidden_states return_progress timings_per_token post_sampling_probs", (False,)),
    **_each("add_generation_prompt do_preprocess skip_special_tokens spaces_between_special_tokens", (True,)),
    **_each("truncate_prompt_tokens", (-1,)),
    **_each("chat_template_kwargs", ({"enable_thinking": False},)),
    **_each("enable_thinking", (False,), _REASONING),
    **_each("thinking", ({"type": "disabled"},), _REASONING),
    **_each("options", (), "send its values as parameters of the request"),
    **_each("guided_json guided_regex guided_choice guided_grammar grammar", ("",), _TEXT),
    **_each("structured_outputs json_schema regex ebnf", ("",), _TEXT),
    **_each("n_probs", (0,), _LOGPROBS),
    **_each("priority", (0,), "requests are served in the order of their arrival; leave it out"),
}

# of a message, as `message.model_dump()` of an answer has them
MESSAGE: Mapping[str, Inert] = {
    **_each("annotations cache_control", None),
    **_each("audio"),
    **_each("refusal", ("",), "leave it out, or send it as content"),
    **_each("function_call tool_calls", (), _TOOLS),
    **_each("reasoning reasoning_content", ("",), _REASONING),
}

# of a text
TEXT: Mapping[str, Inert] = _each("cache_control annotations", None)

# of a clip: all are sampled to the bundle's number and size of frames, and identified by their content
CLIP: Mapping[str, Inert] = {
    **_each("uuid format filename detail size max_pixels min_pixels total_pixels resized_height resized_width", None),
    **_each("max_frames min_frames do_sample_frames cache_control", None),
}
