"""What goes to a remote LLM and comes back: bodies, embeddings, events, and errors in any form."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime.core.errors import EngineError
from runtime.llm.chat import Chat, ClipTokens, Piece
from runtime.llm.sampling import Sampling
from runtime.llm.wire import embeds, error_message, event_of, json_object, pieces_of, request_body


def test_a_body_has_what_the_chat_has():
    text, video = {"type": "text", "text": "look"}, {"type": "video"}
    messages = [
        {"role": "system", "content": [text]},
        {"role": "user", "content": [video, text, video]},
        {"role": "assistant", "content": []},
        {"role": "user", "content": [video]},
        {"role": "user", "content": [text, text]},
    ]
    clips = [ClipTokens(str(number), np.full((1, 2), number, np.float32)) for number in range(3)]
    data = lambda clip: f"data of {clip.key}"  # noqa: E731
    first, second, third = ({"type": "prompt_embeds", "data": data(clip)} for clip in clips)
    expected = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "look"},
            {"role": "user", "content": [first, text, second]},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [third]},
            {"role": "user", "content": [text, text]},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
    }
    assert json.loads(request_body(Chat(messages, clips), "m", data)) == expected
    more = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 1, "stop": ["a", "b"], "seed": 0}
    assert json.loads(request_body(Chat(messages, clips, 1, Sampling(0.5, 0.9, 0), ("a", "b")), "m", data)) == expected | more


def test_tokens_travel_in_the_type_that_was_asked_for():
    tokens = np.float32([[1, -2.5], [3e-3, 65504]])
    assert b"HalfStorage" in embeds(tokens, "float16") and tokens.astype(np.float16).tobytes() in embeds(tokens, "float16")
    for array in (tokens, tokens[:1].astype(np.float16)):
        assert b"BFloat16Storage" in embeds(array, "bfloat16")
    assert np.uint16([0x3F80, 0xC020]).tobytes() in embeds(tokens[:1], "bfloat16")  # 1 and -2.5, the upper halves of float32


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("float16", np.nan), ("bfloat16", np.inf)])
def test_values_that_are_not_finite_on_the_wire_are_not_sent(dtype, value):
    tokens = np.ones((3, 4), np.float32)
    tokens[1, 2] = value
    with pytest.raises(EngineError, match=dtype):
        embeds(tokens, dtype)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("", {}),
        (": comment", {}),
        ('data: {"a": 1}', {"a": 1}),
        ('data:{"a": 1}', {"a": 1}),
        ("data: [DONE]", None),
        ("data: x", {}),
    ],
)
def test_an_event_is_a_line_of_data(line, event):
    assert event_of(line) == event


def test_an_event_may_have_text_an_end_both_or_nothing():
    choice = {"delta": {"content": "a"}, "finish_reason": "length"}
    assert pieces_of({"choices": [choice]}) == [Piece("a"), Piece(finish="length")]
    assert pieces_of({"choices": [{"delta": None, "finish_reason": None}]}) == pieces_of({"choices": None}) == pieces_of({}) == []


@pytest.mark.parametrize(("text", "value"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {}), ("", {})])
def test_what_is_not_a_json_object_is_an_empty_one(text, value):
    assert json_object(text) == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": " no\n room "}}, "no room"),
        ({"error": "no room"}, "no room"),
        ({"message": "no room"}, "no room"),
        ({"error": {"code": 3}}, ""),
        ({"error": None}, ""),
        ({"detail": 1}, ""),
        ({"error": "x" * 501}, "x" * 500),
    ],
)
def test_the_message_of_an_error_in_any_form(body, message):
    assert error_message(body) == message
