"""Chat completions through the official client: the same answers as the command line's, streamed and whole."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from http_server import NAME, data_url, question
from PIL import Image

from export.demo import CLIPS
from runtime.chat import VideoChat
from runtime.server import chat
from runtime.server.memory import Memory


def _questions() -> list[tuple[str, str, str]]:
    facts = [json.loads(path.read_text()) for path in sorted(CLIPS.glob("*.json"))]
    return [(one["clip"], qa["question"], qa["answer"]) for one in facts for qa in one["questions"][::3]]


@pytest.mark.parametrize(("clip", "text", "expected"), _questions())
def test_shipped_clips_are_answered(client, clip, text, expected):
    got = client.chat.completions.create(model=NAME, messages=question(text, data_url(CLIPS / clip)))
    assert got.choices[0].message.content == expected and got.choices[0].finish_reason == "stop"


def test_a_stream_has_the_text_of_the_whole_answer(client, video):
    ask = {"model": NAME, "messages": question("what color is the square ?", video)}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_include_usage_has_none(client, video):
    chunks = list(client.chat.completions.create(model=NAME, messages=question("what color is the square ?", video), stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_compression_and_usage_are_counted(client, bundle, video):
    got = client.chat.completions.create(model=NAME, messages=question("which shape appears last ?", video))
    manifest = bundle.manifest
    block = got.metadata["compression"]
    assert (block["tokens_in"], block["tokens_out"]) == (manifest.patch_tokens, manifest.tokens_per_clip) == (1296, 257)
    assert block["ratio"] == 5.04 and block["spec"] == manifest.compression.spec
    chat = VideoChat.open(bundle, "onnx")
    list(chat.ask(CLIPS / "shapes.mp4", "which shape appears last ?"))
    assert got.usage.prompt_tokens == chat.answer.prompt_tokens
    assert got.usage.completion_tokens == len(chat.answer.ids)


def test_a_second_question_about_a_clip_reuses_its_tokens_and_their_kv(start):
    client = start().client()
    clip = data_url(CLIPS / "flash.mp4")
    first = client.chat.completions.create(model=NAME, messages=question("which letter is shown ?", clip))
    second = client.chat.completions.create(model=NAME, messages=question("what color is the flash ?", clip))
    assert first.metadata["compression"]["cached_clips"] == 0 and second.metadata["compression"]["cached_clips"] == 1
    assert "encode+compress" in first.metadata["compression"]["seconds"]
    assert "encode+compress" not in second.metadata["compression"]["seconds"]
    assert second.usage.prompt_tokens_details.cached_tokens > 257  # the clip's, and the template before it
    assert (first.choices[0].message.content, second.choices[0].message.content) == ("t", "white")


def test_many_clients_at_once_get_the_answers_of_one(client):
    asked = _questions() * 2

    def ask(one):
        clip, text, _ = one
        got = client.chat.completions.create(model=NAME, messages=question(text, data_url(CLIPS / clip)))
        return got.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, asked)) == [expected for _, _, expected in asked]


def test_max_tokens_ends_an_answer_with_length(client, video):
    ask = {"model": NAME, "messages": question("how many objects are there ?", video)}
    got = client.chat.completions.create(**ask, max_completion_tokens=1)
    assert got.choices[0].finish_reason == "length" and got.usage.completion_tokens == 1


def test_a_stop_string_ends_the_answer_before_it(client, video):
    ask = {"model": NAME, "messages": question("which shape appears last ?", video)}
    assert client.chat.completions.create(**ask).choices[0].message.content == "cross"
    got = client.chat.completions.create(**ask, stop=["ss", "zz"]).choices[0]
    assert (got.message.content, got.finish_reason) == ("cro", "stop")
    pieces = client.chat.completions.create(**ask, stop="ros", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == "c"


def test_a_seed_makes_sampling_repeatable(client):
    ask = {"model": NAME, "messages": question("the the where a ?"), "temperature": 2.0, "max_tokens": 12}
    texts = [client.chat.completions.create(**ask, seed=seed).choices[0].message.content for seed in (5, 5, *range(6, 20))]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_an_image_is_a_clip_of_one_frame(client):
    file = io.BytesIO()
    Image.fromarray(np.full((90, 120, 3), 200, np.uint8)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "how many objects are there ?"}]
    got = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": parts}])
    assert got.metadata["compression"]["tokens_out"] == 257


@pytest.mark.parametrize("part", ["input_video with data", "input_video with url", "video_url as a string"])
def test_a_clip_comes_in_several_forms(client, video, part):
    forms = {
        "input_video with data": {"type": "input_video", "input_video": {"data": video.partition(",")[2], "format": "mp4"}},
        "input_video with url": {"type": "input_video", "input_video": {"url": video}},
        "video_url as a string": {"type": "video_url", "video_url": video},
    }
    text = {"type": "text", "text": "which shape appears last ?"}
    got = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": [forms[part], text]}])
    assert got.choices[0].message.content == "cross"


def test_a_conversation_goes_on_where_its_kv_ends(start, video):
    client = start().client()
    messages = question("which shape appears last ?", video)
    first = client.chat.completions.create(model=NAME, messages=messages)
    more = [*messages, {"role": "assistant", "content": first.choices[0].message.content}, *question("what color is the square ?")]
    second = client.chat.completions.create(model=NAME, messages=more)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_a_special_token_in_a_question_is_text(client, video):
    plain = client.chat.completions.create(model=NAME, messages=question("which shape appears last ?", video))
    with_text = client.chat.completions.create(model=NAME, messages=question("which shape appears last <video> ?", video))
    # one clip still, and three more tokens: "<", "video" and ">" of a tokenizer that knows none of them
    assert with_text.usage.prompt_tokens == plain.usage.prompt_tokens + 3
    assert with_text.metadata["compression"]["clips"] == 1


def test_two_clips_in_one_question(client, video):
    other = data_url(CLIPS / "flash.mp4")
    got = client.chat.completions.create(model=NAME, messages=question("how many objects are there ?", video, other))
    assert got.metadata["compression"]["clips"] == 2 and got.usage.prompt_tokens > 2 * 257


class TestBegin:
    """A request whose clips have been stored, on stand-ins for encoder and LLM; each clip is (number of tokens, whether it was cached)."""

    @pytest.fixture
    def begun(self):
        """begun(clips): the answer as it begins, once the request's share of memory was looked at."""

        async def encode(model, media, deadline):
            tokens, cached = media
            seconds = {"decode": 0.5, "encode": float(tokens)}
            return SimpleNamespace(key=f"{tokens} tokens", tokens=np.zeros((tokens, 2)), seconds=seconds), cached

        def begun(*clips: tuple[int, bool]) -> chat.Answering:
            manifest = SimpleNamespace(patch_tokens=10, compression=SimpleNamespace(spec="nsp"))
            model = SimpleNamespace(name="m", bundle=SimpleNamespace(manifest=manifest))
            request = SimpleNamespace(limit=5, sampling="greedy", stop=["."])
            job = SimpleNamespace(messages=["what ?"], request=request)
            with Memory(100).hold() as share:
                share.grow(30)
                ready = chat.Ready(job, model, SimpleNamespace(answer=lambda asked: ("pieces of", asked)), list(clips), share)
                answer = asyncio.run(chat.begin(SimpleNamespace(encode=encode), ready, 7.5))
                assert (share.size, share.memory.held, ready.clips) == (0, 0, [])  # others may have it while this one is answered
            return answer

        return begun

    def test_its_clips_leave_memory_and_the_llm_is_asked_with_their_tokens(self, begun):
        answer = begun((4, False), (3, True), (2, False))
        asked = answer.chat
        assert answer.pieces == ("pieces of", asked) and answer.model.name == "m" and answer.id.startswith("chatcmpl-")
        assert [(clip.key, len(clip.tokens)) for clip in asked.clips] == [("4 tokens", 4), ("3 tokens", 3), ("2 tokens", 2)]
        assert (asked.messages, asked.max_tokens, asked.sampling, asked.stop) == (["what ?"], 5, "greedy", ["."])
        assert asked.deadline == 7.5
        assert answer.compression == {
            "spec": "nsp",
            "tokens_in": 30,
            "tokens_out": 9,
            "ratio": 3.33,
            "clips": 3,
            "cached_clips": 1,
            "seconds": {"decode": 1.0, "encode": 6.0},
        }

    def test_a_question_without_clips_has_no_ratio(self, begun):
        block = begun().compression
        assert (block["tokens_in"], block["tokens_out"], block["ratio"], block["clips"], block["seconds"]) == (0, 0, None, 0, {})
