"""Requests as real clients write them: what changes nothing is accepted, what would is refused by name and with what to do."""

from __future__ import annotations

import base64
import io

import httpx
import pytest
from http_server import NAME, data_url, question
from PIL import Image
from refusal import naming

from export.demo import CLIPS
from runtime.server import parameters
from runtime.server.chat_job import Job
from runtime.server.errors import ApiError
from runtime.server.media import load
from runtime.server.options import ServerOptions
from runtime.server.schema import ChatRequest, MediaUrl, parse
from runtime.server.stream import _event

CLIP = data_url(CLIPS / "shapes.mp4")
BARE = CLIP.partition(",")[2]
TEXT = {"type": "text", "text": "which shape appears last ?"}
HISTORY = {"role": "assistant", "content": "cross"}


def _job(**more) -> Job:
    return Job.of(parse(ChatRequest, _event({"model": NAME, "messages": question("what ?")} | more)[6:]))


def _refused(**more) -> ApiError:
    with pytest.raises(ApiError) as raised:
        _job(**more)
    assert raised.value.status == 400
    return raised.value


@pytest.mark.parametrize("table", [parameters.OPENAI, parameters.EXTENSIONS], ids=["openai", "extensions"])
def test_values_that_change_nothing_are_accepted(table):
    for name, inert in table.items():
        for value in (None, [], {}, *(("x", 1, {"any": [{"thing": None}]}) if inert.values is None else inert.values)):
            assert _job(**{name: value}) == _job(), (name, value)


@pytest.mark.parametrize(
    ("names", "neutral", "other"),
    [
        ("top_k", (-1, 0), 1),
        ("typical_p tfs_z repetition_penalty repeat_penalty length_penalty best_of", (1, 1.0), 0),
        ("min_p top_a xtc_probability dry_multiplier dynatemp_range mirostat", (0, 0.0), 1),
        ("presence_penalty frequency_penalty", (0, 0.0), 0.5),
        ("use_beam_search", (False,), True),
        ("logit_bias", ({},), {"5": 1}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_sampling_that_is_off_changes_nothing_and_temperature_and_top_p_replace_the_rest(names, neutral, other):
    for name in names.split():
        for value in neutral:
            assert _job(**{name: value}) == _job(), (name, value)
        error = _refused(**{name: other})
        assert error.param == name and naming("temperature", "top_p").match(str(error))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [("top_k", 3, "temperature"), ("n", 2, "each answer"), ("n", True, "each answer"), ("logprobs", True, "leave it out"),
     ("repetition_penalty", 1.1, "leave it out"), ("min_p", 0.1, "temperature"), ("tools", [{"type": "function"}], "tools"),
     ("response_format", {"type": "json_object"}, "plain text"), ("ignore_eos", True, "leave it out"), ("store", True, "stores"),
     ("options", {"num_ctx": 5}, "parameters of the request"), ("reasoning_effort", "high", "reason")],
)  # fmt: skip
def test_values_that_would_change_the_answer_are_refused_with_what_to_do(name, value, remedy):
    error = _refused(**{name: value})
    assert error.param == name and remedy in str(error)


def test_a_parameter_that_nobody_has_is_refused_unless_it_is_empty():
    assert _refused(colour=1).code == "unknown_parameter" and "leave it out" in str(_refused(colour=1))
    assert _job(colour=None) == _job(colour=[]) == _job(colour={}) == _job()
    assert _refused(messages=[]).param == "messages"  # empty, but not unknown


@pytest.mark.parametrize(
    "more",
    [
        {"separate_reasoning": True, "stream_reasoning": True, "no_stop_trim": False, "return_hidden_states": False, "rid": "a"},
        {"include_reasoning": True, "enable_thinking": False, "thinking": {"type": "disabled"}},
        {"n_predict": -1, "id_slot": -1, "grammar": "", "timings_per_token": False, "xtc_probability": 0.0, "dry_multiplier": 0},
        {"response_format": {"type": "text", "json_schema": None}, "ttl": 300, "do_preprocess": True},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_other_servers_clients_send_changes_nothing(more):
    assert _job(**more) == _job()


def test_what_would_change_the_answer_is_refused_by_name():
    for name, value in {"n_predict": 5, "grammar": "root ::= x", "enable_thinking": True, "no_stop_trim": True}.items():
        assert _refused(**{name: value}).param == name


@pytest.mark.parametrize(("asked", "tokens"), [(-1, None), (None, None), (16.0, 16), ("16", 16), (10**12, 10**12)])
def test_numbers_of_tokens_come_as_clients_write_them(asked, tokens):
    assert _job(max_tokens=asked).request.limit == tokens
    assert _job(max_completion_tokens=asked, max_tokens=3 if tokens else None).request.limit == tokens


@pytest.mark.parametrize("asked", [0, -2, 1.5, "x", "", True, [1]])
def test_other_numbers_of_tokens_are_refused(asked):
    assert _refused(max_tokens=asked).param == "max_tokens"


def test_what_is_no_number_is_no_temperature():
    for text in (b"NaN", b"Infinity", b"1e999"):
        with pytest.raises(ApiError):
            parse(ChatRequest, b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": ' + text + b"}")


def test_max_tokens_past_the_context_is_cut_to_what_fits(client, models, monkeypatch):
    monkeypatch.setattr(models[NAME].llm.scheduler.prompt, "eos", frozenset())
    got = client.chat.completions.create(model=NAME, messages=question("what " * 1400), max_tokens=10**6)
    assert got.choices[0].finish_reason == "length"
    assert got.usage.total_tokens == models[NAME].llm.max_context + 1  # the last token needs no row of the cache


def test_a_history_is_taken_as_the_client_dumps_it(client):
    first = client.chat.completions.create(model=NAME, messages=question("which shape appears last ?", CLIP))
    dumped = first.choices[0].message.model_dump()
    more = [*question("which shape appears last ?", CLIP), dumped, *question("what color is the square ?")]
    plain = [*more[:1], {"role": "assistant", "content": dumped["content"]}, more[2]]
    answers = [client.chat.completions.create(model=NAME, messages=one) for one in (more, plain)]
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


@pytest.mark.parametrize("field", ["refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content"])
def test_what_a_message_of_a_history_has_beside_its_content(field):
    extra = {"refusal": "no", "annotations": [{"type": "url_citation"}]}.get(field, [1])
    messages = [*question("a ?"), HISTORY | {field: extra}, *question("b ?")]
    if field == "annotations":
        assert _job(messages=messages).messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "cross"}]}
    else:
        assert _refused(messages=messages).param == f"messages.1.{field}"


def test_an_assistant_that_said_nothing_has_no_parts():
    assert _job(messages=[*question("a ?"), HISTORY | {"content": None}, *question("b ?")]).messages[1]["content"] == []


def _picture(number: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (number * 9 % 255, 100, 50)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


PICTURES = [_picture(number) for number in range(20)]
PICTURE_URLS = [f"data:image/jpeg;base64,{picture}" for picture in PICTURES]


def _clip(part: dict) -> MediaUrl:
    job = _job(messages=[{"role": "user", "content": [part, TEXT]}])
    assert [one["type"] for one in job.messages[0]["content"]] == ["video", "text"]
    return job.asked[0]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": CLIP}},
        {"type": "video_url", "video_url": CLIP},
        {"type": "video_url", "video_url": {"url": CLIP}, "uuid": "u1"},
        {"type": "video_url", "video_url": {"url": CLIP, "fps": 2, "num_frames": 16}, "max_pixels": 1000, "fps": 1},
        {"type": "video", "video": CLIP},
        {"type": "video", "video": {"url": CLIP, "do_sample_frames": False}, "cache_control": {"type": "ephemeral"}},
        {"type": "video", "video": {"url": CLIP}, "nframes": 16, "total_pixels": 5, "min_pixels": 4},
        {"type": "input_video", "input_video": {"data": BARE, "format": "mp4"}},
        {"type": "image_url", "image_url": {"url": CLIP, "detail": "high"}},
        {"type": "image", "image": CLIP},
        {"type": "input_image", "image_url": CLIP},
        {"type": "file", "file": {"filename": "a.mp4", "file_data": CLIP}},
        {"type": "file", "file": {"filename": "a.mp4", "file_data": BARE}},
    ],
    ids=lambda part: f"{part['type']} {len(part)}",
)  # fmt: skip
def test_a_clip_comes_in_many_parts(part):
    clip = load(_clip(part), ServerOptions())
    assert clip.paths[0].read_bytes() == (CLIPS / "shapes.mp4").read_bytes()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "video_url", "video_url": None, "uuid": "u1"}, ".video_url'"),
        ({"type": "file", "file": {"file_id": "f"}}, "file_data"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "'video_url'"),
        ({"type": "video_url", "video_url": {"url": CLIP}, "video_start": 3}, ".video_start'"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_taken_name_what_is_wrong_or_expected(part, named):
    assert named in str(_refused(messages=[{"role": "user", "content": [part, TEXT]}]))


@pytest.mark.parametrize(
    "more",
    [{"mm_processor_kwargs": {"num_frames": 8, "fps": 2}}, {"mm_processor_kwargs": {"num_frames": -1}}, {"media_io_kwargs": {"video": {"num_frames": 8}}},
     {"messages": [{"role": "user", "content": [{"type": "video", "video": CLIP, "nframes": 8}, TEXT]}]}],
    ids=str,
)  # fmt: skip
def test_another_number_of_frames_than_the_bundle_s_is_refused(server, more):
    body = {"model": NAME, "messages": question("x ?", CLIP)} | more
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert got.status_code == 400 and naming("16 frames").match(got.json()["error"]["message"])
    assert "--frames -1" not in got.json()["error"]["message"]


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(PICTURES)}}],
        [{"type": "video", "video": PICTURE_URLS}],
        [{"type": "video", "video": {"frames": PICTURE_URLS}, "fps": 2}],
        [{"type": "image_url", "image_url": {"url": url}} for url in PICTURE_URLS],
    ],
    ids=["vllm", "qwen", "frames", "images"],
)  # fmt: skip
def test_a_list_of_pictures_is_one_clip(server, parts):
    body = {"model": NAME, "messages": [{"role": "user", "content": [*parts, TEXT]}], "image_parts": "frames", "max_tokens": 1}
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert got["metadata"]["compression"]["clips"] == 1 and got["usage"]["prompt_tokens"] == 267
    (clip,) = [clip for key, clip in server.state.clips._kept.items() if key.endswith(load(_clip_of(body), ServerOptions()).digest)]
    assert clip.frames == tuple(number * 20 // 16 for number in range(16))
    assert clip.timestamps[4] == (2.5 if parts[0].get("fps") else 5.0)


def _clip_of(body: dict) -> MediaUrl:
    return _job(**body).asked[0]


def test_a_frame_that_is_no_picture_is_named(server):
    frames = [*PICTURE_URLS[:5], "data:image/jpeg;base64,QUJD"]
    body = {"model": NAME, "messages": [{"role": "user", "content": [{"type": "video", "video": frames}, TEXT]}]}
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert got.status_code == 422 and got.json()["error"]["message"].startswith("frame 5 of the clip")


def test_images_are_clips_of_their_own_unless_they_are_said_to_be_frames():
    images = [{"type": "image_url", "image_url": url} for url in PICTURE_URLS[:3]]
    between = [*images[:2], TEXT, images[2]]
    assert len(_job(messages=[{"role": "user", "content": between}]).asked) == 3
    grouped = _job(messages=[{"role": "user", "content": between}], image_parts="frames")
    assert [one.frames for one in grouped.asked] == [PICTURE_URLS[:2], None]
    assert [part["type"] for part in grouped.messages[0]["content"]] == ["video", "text", "video"]
    many = {"role": "user", "content": [{"type": "image_url", "image_url": url} for url in PICTURE_URLS]}
    assert '"image_parts": "frames"' in str(_refused(messages=[many]))
