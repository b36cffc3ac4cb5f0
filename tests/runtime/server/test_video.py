"""What the two video routes say of an encoded clip, which is made up here."""

from __future__ import annotations

import asyncio
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming
from safetensors.numpy import load

from runtime.server import video
from runtime.server.clip_encoder import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.memory import Held, Memory
from runtime.server.models import ServedModel
from runtime.server.schema import VideoRequest

PTG = "ptg:sizes=2,strides=1+nsp:window=2"  # frames 0 and 1, 2 and 3 are summed up in 1 and 3


def clip(**more) -> EncodedClip:
    values = {
        "tokens": np.float32([[1, 2], [3, 4.00001], [5, 6]]),
        "frames": (0, 9, 18, 27),
        "timestamps": (0.0, 0.1234564, 2.00049, 3.0),
    }
    values |= {"repeated": 1, "norms": None, "pictures": ("a", "b", "c", "d"), "seconds": {"decode": 0.5}}
    return EncodedClip("key", **values | more)


@pytest.fixture
def served(monkeypatch):
    """served(clip): (a state with that clip, a share of memory, what was encoded with how much of it)."""

    def serve(one: EncodedClip, spec: str = PTG):
        manifest = SimpleNamespace(frames=4, patch_tokens=24, grid=[2, 3], compression=SimpleNamespace(spec=spec))
        model = ServedModel("m", SimpleNamespace(manifest=manifest), SimpleNamespace(identity="sum"), None)

        async def encode(model_, media, deadline):
            seen.append((model_.name, media.url, deadline, held.size))
            return one, False

        seen, held = [], Held(Memory(100))
        held.grow(30)
        monkeypatch.setattr(video, "load", lambda media, options: SimpleNamespace(size=7, url=media.url))
        return SimpleNamespace(models={"m": model}, options="options", encode=encode), held, seen

    return serve


def job(**more) -> video.Job:
    return video.Job(VideoRequest(**{"model": "m", "video_url": {"url": "u"}} | more))


def shown(state, asked: video.Job, held: Held) -> dict:
    return json.loads(asyncio.run(video.inspect(state, asked, 5.0, held)).body)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tokens_as_safetensors_say_where_they_come_from(served, dtype):
    state, held, seen = served(clip())
    got = asyncio.run(video.tokens(state, job(dtype=dtype), 5.0, held))
    content = got.body
    tokens = load(content)["visual_tokens"]
    assert tokens.dtype == dtype and tokens.tolist() == clip().tokens.astype(dtype).tolist()
    facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert facts == {
        "bundle": "sum", "spec": PTG, "tokens_in": "24", "tokens_out": "3",
        "frames": "[0, 9, 18, 27]", "timestamps": "[0.0, 0.123456, 2.00049, 3.0]",
    }  # fmt: skip
    assert dict(got.headers) == {
        "x-gridpool-bundle": "sum", "x-gridpool-spec": PTG, "x-gridpool-tokens-in": "24", "x-gridpool-tokens-out": "3",
        "content-disposition": 'attachment; filename="visual_tokens.safetensors"', "content-type": "application/octet-stream",
        "content-length": str(len(content)),
    }  # fmt: skip
    assert (seen, held.size) == ([("m", "u", 5.0, 7)], 0)


def test_tokens_as_npz(served):
    state, held, _ = served(clip())
    got = asyncio.run(video.tokens(state, job(format="npz"), 5.0, held))
    file = np.load(io.BytesIO(got.body))
    assert file["visual_tokens"].dtype == np.float16 and file["visual_tokens"].shape == (3, 2)
    assert (file["frames"].tolist(), file["timestamps"].tolist()) == ([0, 9, 18, 27], [0.0, 0.1234564, 2.00049, 3.0])
    assert got.headers["content-disposition"].endswith('visual_tokens.npz"')


@pytest.mark.filterwarnings("ignore:overflow")
def test_tokens_beyond_float16_are_not_sent_as_infinite(served):
    state, held, _ = served(clip(tokens=np.float32([[70_000, 1]])))
    with pytest.raises(ApiError, match=naming("float16")) as raised:
        asyncio.run(video.tokens(state, job(), 5.0, held))
    assert (raised.value.status, raised.value.code, raised.value.param) == (422, "not_finite", "dtype")
    assert asyncio.run(video.tokens(state, job(dtype="float32"), 5.0, held))


def test_another_number_of_frames_is_refused_before_the_clip_is_stored(served):
    state, held, seen = served(clip())
    for count in (4, None):
        asyncio.run(video.tokens(state, job(video_url={"url": "u", "num_frames": count}), 5.0, held))
    with pytest.raises(ApiError, match=naming("num_frames is 3", "4 frames")):
        shown(state, job(video_url={"url": "u", "num_frames": 3}), held)
    assert len(seen) == 2


def test_what_the_page_is_told(served):
    norms = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    state, held, _ = served(clip(norms=norms))
    got = shown(state, job(), held)
    frames = got.pop("frames")
    assert got == {
        "model": "m", "tokens_in": 24, "tokens_out": 3, "spec": PTG, "grid": [2, 3], "repeated_frames": 1, "seconds": {"decode": 0.5},
    }  # fmt: skip
    assert [(one["index"], one["time"], one["image"]) for one in frames] == [
        (0, 0.0, "a"),
        (9, 0.123, "b"),
        (18, 2.0, "c"),
        (27, 3.0, "d"),
    ]
    assert [one["summary_levels"] for one in frames] == [[], [1], [], [1]]
    high = 22.885  # of 0 … 23, a two-hundredth is above
    assert [one["heat"] for one in frames] == [[round(min(n / high, 1) * 255) for n in range(at, at + 6)] for at in (0, 6, 12, 18)]
    state, held, _ = served(clip())
    assert {str(one["heat"]) for one in shown(state, job(), held)["frames"]} == {"None"}


def test_heat_is_on_one_scale_from_the_least_to_the_largest():
    assert video._heat(None) is None
    assert video._heat(np.float16([[[2, 2]], [[2, 2]]])) == [[0, 0], [0, 0]]
    norms = np.float16([[[3, 5]], [[5, 1]], [[1, 5]]] + [[[5, 5]]] * 100)
    assert video._heat(norms)[:3] == [[128, 255], [255, 0], [0, 255]]


@pytest.mark.parametrize(
    ("spec", "levels"),
    [
        (PTG, {1: [1], 3: [1]}),
        ("ptg:sizes=2/2,strides=1/2", {1: [1], 3: [1, 2]}),
        ("nsp:window=2", {}),
        ("nsp:window=2+ptg:sizes=2,strides=1", {}),
    ],
)
def test_frames_that_hold_summaries(spec, levels):
    manifest = SimpleNamespace(frames=4, compression=SimpleNamespace(spec=spec))
    assert video.written_levels(SimpleNamespace(manifest=manifest)) == levels
