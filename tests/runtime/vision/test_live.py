"""Frames of a stream: each is encoded once, the last T give the tokens of a clip of just those frames."""

from __future__ import annotations

import numpy as np
import pytest
from refusal import naming

from runtime.chat import VideoChat
from runtime.core.errors import VideoError
from runtime.vision.encoder import VisionEncoder
from runtime.vision.live import LiveEncoder, Ring

T = 16


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 90, 160, 3), np.uint8)


def of_a_clip(bundle, images) -> np.ndarray:
    """Tokens of these T frames as the vision encoder makes them of a file's."""
    encoder = VisionEncoder.open(bundle)
    resized = np.stack([encoder.preprocessor.resize(image) for image in images])
    return encoder.tokens(encoder.preprocessor.normalise(resized))


@pytest.fixture(scope="module", params=["split_bundle", "bundle"])
def any_bundle(request):
    return request.getfixturevalue(request.param)


class TestTokens:
    def test_the_last_frames_give_the_tokens_of_a_clip_of_them(self, any_bundle):
        images = frames(2 * T + 3)
        live = LiveEncoder.open(any_bundle)
        for count, image in enumerate(images, 1):
            live.push(image)
            if count in (T, T + 1, 2 * T + 3):
                expected = of_a_clip(any_bundle, images[count - T : count])
                np.testing.assert_allclose(live.tokens(), expected, rtol=1e-5, atol=1e-5)
        assert len(live) == T

    def test_few_frames_are_repeated_as_those_of_a_short_clip(self, any_bundle):
        images = frames(3)
        live = LiveEncoder.open(any_bundle)
        for image in images:
            live.push(image)
        order = [0] * 6 + [1] * 5 + [2] * 5
        np.testing.assert_allclose(live.tokens(), of_a_clip(any_bundle, images[order]), rtol=1e-5, atol=1e-5)
        assert live.visual().clip.indices == tuple(order) and live.visual().clip.repeated == T - 3

    def test_a_cleared_encoder_knows_nothing_of_before(self, split_bundle):
        live = LiveEncoder.open(split_bundle)
        live.push(frames(1)[0])
        live.clear()
        with pytest.raises(VideoError, match=naming("frame")):
            live.tokens()
        images = frames(2, seed=1)
        for image in images:
            live.push(image)
        assert len(live) == 2
        np.testing.assert_allclose(live.tokens(), of_a_clip(split_bundle, images[[0] * 8 + [1] * 8]), atol=1e-5)

    def test_a_frame_is_encoded_once(self, split_bundle, monkeypatch):
        live = LiveEncoder.open(split_bundle)
        runs = []
        run = live.engine.encoder.run
        monkeypatch.setattr(live.engine.encoder, "run", lambda feeds: runs.append(1) or run(feeds))
        for image in frames(T + 2):
            live.push(image)
            live.tokens()
        assert live.encodes_once and len(runs) == T + 2


class TestVisual:
    def test_it_says_which_frames_and_when(self, split_bundle):
        live = LiveEncoder.open(split_bundle)
        for number, image in enumerate(frames(T + 4)):
            live.push(image, seconds=100 + 0.5 * number)
        visual = live.visual("camera")
        assert visual.clip.indices == tuple(range(4, T + 4))
        assert visual.clip.timestamps == tuple(100 + 0.5 * number for number in range(4, T + 4))
        assert (visual.clip.duration, visual.clip.total, visual.clip.size) == (7.5, T + 4, (90, 160))
        assert str(visual.clip.path) == "camera" and set(visual.seconds) == {"encode", "compress"}

    def test_a_chat_answers_about_it(self, split_bundle, bundle, clip):
        import av

        live = LiveEncoder.open(split_bundle)
        with av.open(str(clip)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for at in range(T):
            live.push(images[4 * at])  # of 64
        chat = VideoChat.open(bundle)
        expected = "".join(chat.ask(clip, "how many flashes are there ?"))
        assert "".join(chat.ask_about(live.visual(), "how many flashes are there ?")) == expected


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_frame_is_refused(split_bundle, bad):
    with pytest.raises(VideoError, match=r"expected RGB uint8 \[height, width, 3\]"):
        LiveEncoder.open(split_bundle).push(bad)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_ring_holds_the_last_rows_in_order_in_one_piece(length):
    ring = Ring(length, (2,), np.dtype(np.int64))
    for number in range(3 * length + 1):
        ring.push(np.full(2, number), float(number))
        held = range(max(0, number + 1 - length), number + 1)
        assert ring.rows().tolist() == [[n, n] for n in held] and list(ring.times) == [float(n) for n in held]
        assert ring.rows().flags.c_contiguous and ring.rows().base is not None
