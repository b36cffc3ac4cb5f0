"""Which values of which parameters change nothing, written out by hand, and what to do instead of sending another."""

from __future__ import annotations

from typing import Any

import pytest
from refusal import naming

from runtime.server import parameters
from runtime.server.parameters import Inert, is_empty


def each(names: str, values: Any) -> dict[str, Any]:
    return {name: values for name in names.split()}


ANY = "any"
OFF = {"enable_thinking": False}
SEVERAL = [
    True, False, -1, 0, 1, 2, 0.5, -0.5, "", "x", "none", "auto", "low", "medium", ["text"], ["audio"], {"type": "text"}, {"type": "json_object"},
    {"type": "disabled"}, OFF, {"enable_thinking": True},
]  # fmt: skip

OPENAI = {
    "user": ANY, "safety_identifier": ANY, "prompt_cache_key": ANY, "prompt_cache_retention": ANY, "service_tier": ANY, "metadata": ANY,
    "store": [False], "n": [1], "logprobs": [False], "top_logprobs": [0], "presence_penalty": [0], "frequency_penalty": [0],
    "logit_bias": [], "response_format": [{"type": "text"}], "tools": [], "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False], "functions": [], "function_call": ["none", "auto"], "modalities": [["text"]], "audio": [],
    "prediction": [], "web_search_options": [], "reasoning_effort": ["none"], "verbosity": ["medium"],
}  # fmt: skip
EXTENSIONS = {
    **each("id chat_id session_id request_id rid id_slot cache_salt cache_prompt keep_alive ttl", ANY),
    **each("repeat_last_n mirostat_tau mirostat_eta xtc_threshold dry_base dry_allowed_length", ANY),
    **each("dry_penalty_last_n separate_reasoning stream_reasoning include_reasoning guided_decoding_backend", ANY),
    **each("min_p top_a xtc_probability dry_multiplier dynatemp_range mirostat min_tokens n_probs priority", [0]),
    **each("typical_p tfs_z repetition_penalty repeat_penalty length_penalty best_of", [1]),
    **each("use_beam_search ignore_eos echo continue_final_message add_special_tokens no_stop_trim", [False]),
    **each("include_stop_str_in_output enable_thinking return_token_ids return_tokens_as_token_ids", [False]),
    **each("return_hidden_states return_progress timings_per_token post_sampling_probs", [False]),
    **each("add_generation_prompt do_preprocess skip_special_tokens spaces_between_special_tokens", [True]),
    **each("stop_token_ids options", []),
    **each("guided_json guided_regex guided_choice guided_grammar structured_outputs grammar", [""]),
    **each("json_schema regex ebnf", [""]),
    "top_k": [-1, 0], "n_predict": [-1], "truncate_prompt_tokens": [-1], "chat_template_kwargs": [OFF], "thinking": [{"type": "disabled"}],
}  # fmt: skip
MESSAGE = {
    "refusal": [""], "annotations": ANY, "audio": [], "function_call": [], "tool_calls": [], "reasoning": [""], "reasoning_content": [""],
    "cache_control": ANY,
}  # fmt: skip
TEXT = {"cache_control": ANY, "annotations": ANY}
CLIP = each(
    "uuid format filename detail size max_pixels min_pixels total_pixels resized_height resized_width max_frames min_frames "
    "do_sample_frames cache_control",
    ANY,
)


@pytest.mark.parametrize("table", ["OPENAI", "EXTENSIONS", "MESSAGE", "TEXT", "CLIP"])
def test_the_values_that_change_nothing_are_these_alone(table):
    expected, known = globals()[table], getattr(parameters, table)
    assert known.keys() == expected.keys()
    for name, values in expected.items():
        kept = [(type(one), one) for one in values] if values != ANY else None
        for value in SEVERAL:
            neutral = kept is None or (type(value), value) in kept
            assert known[name].accepts(value) is neutral, (name, value)
        assert all(known[name].accepts(empty) for empty in (None, [], {}))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ("store", ["stores"]),
        ("n", ["each answer"]),
        ("logprobs top_logprobs n_probs", ["log probabilities"]),
        ("tools tool_choice parallel_tool_calls functions function_call", ["tools"]),
        ("modalities response_format grammar json_schema", ["plain text", "in words"]),
        ("reasoning_effort enable_thinking thinking", ["reasoning"]),
        ("verbosity", ["short", "long"]),
        ("ignore_eos min_tokens", ["the model ends them"]),
        ("n_predict", ["max_tokens"]),
        ("stop_token_ids", ["stop"]),
        ("options", ["parameters"]),
        ("priority", ["order"]),
        ("presence_penalty frequency_penalty logit_bias top_k typical_p", ["temperature", "top_p"]),
        ("audio prediction web_search_options echo truncate_prompt_tokens", ["leave it out"]),
    ],
)
def test_what_to_do_instead(names, named):
    known = {**parameters.OPENAI, **parameters.EXTENSIONS}
    (remedy,) = {known[name].remedy for name in names.split()}
    assert naming(*named).match(remedy)


def test_what_to_do_instead_in_a_message():
    remedies = {name: inert.remedy for name, inert in parameters.MESSAGE.items()}
    assert remedies["function_call"] == remedies["tool_calls"] == parameters.OPENAI["tools"].remedy
    assert remedies["reasoning"] == remedies["reasoning_content"] == parameters.OPENAI["reasoning_effort"].remedy
    assert naming("content").match(remedies["refusal"])


def test_an_object_is_the_same_with_parts_that_are_null_and_true_is_not_one():
    inert = Inert(({"type": "text"}, 1))
    assert inert.accepts({"type": "text", "schema": None}) and not inert.accepts({"type": "text", "schema": 0})
    assert inert.accepts(1.0) and not inert.accepts(True) and inert.accepts({"schema": None})
    assert Inert((True,)).accepts(True) and not Inert((True,)).accepts(1)
    assert Inert() == Inert((), "leave it out")


@pytest.mark.parametrize(
    ("value", "empty"), [(None, True), ([], True), ({}, True), ("", False), (0, False), (False, False), ([None], False)]
)
def test_what_is_empty(value, empty):
    assert is_empty(value) is empty
