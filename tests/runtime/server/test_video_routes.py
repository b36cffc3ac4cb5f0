"""Compressed tokens over the wire are the encoder's own; what the page is told is what the graph computed."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from http_server import NAME
from safetensors.numpy import load

from export.demo import CLIPS
from runtime.media.preprocess import Preprocessor, load_clip
from runtime.server.video import written_levels
from runtime.tools.picture import look
from runtime.vision.encoder import VisionEncoder


@pytest.fixture(scope="module")
def expected(bundle):
    return VisionEncoder.open(bundle, "onnx").encode(CLIPS / "shapes.mp4")


def _post(server, video, **more):
    return httpx.post(f"{server.url}/v1/video/tokens", json={"model": NAME, "video_url": {"url": video}} | more, timeout=60)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float32", 1e-5)])
def test_tokens_come_as_safetensors(server, video, expected, dtype, tolerance):
    got = _post(server, video, dtype=dtype)
    tokens = load(got.content)["visual_tokens"]
    assert tokens.dtype == dtype and got.headers["x-gridpool-tokens-out"] == "257"
    np.testing.assert_allclose(tokens, expected.tokens, rtol=tolerance, atol=tolerance)
    header = json.loads(got.content[8 : 8 + int.from_bytes(got.content[:8], "little")])["__metadata__"]
    assert json.loads(header["frames"]) == list(expected.clip.indices)


def test_tokens_come_as_npz(server, video, expected):
    file = np.load(io.BytesIO(_post(server, video, format="npz", dtype="float32").content))
    np.testing.assert_allclose(file["visual_tokens"], expected.tokens, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(file["timestamps"], expected.clip.timestamps)


@pytest.mark.parametrize("body", [{}, {"format": "pickle"}, {"dtype": "int8"}, {"video_url": None}])
def test_bad_requests_are_refused(server, video, body):
    values = {"model": NAME, "video_url": {"url": video}} | body if body else {"model": NAME}
    assert httpx.post(f"{server.url}/v1/video/tokens", json=values).status_code == 400


def test_the_page_is_shown_the_norms_that_the_graph_computed(server, bundle, video):
    got = httpx.post(f"{server.url}/v1/video/inspect", json={"model": NAME, "video_url": {"url": video}}, timeout=60).json()
    picture = look(bundle, CLIPS / "shapes.mp4")  # another graph and another way to the same norms
    low, high = picture.norms.min(), np.quantile(picture.norms, 0.995)
    heat = np.array([frame["heat"] for frame in got["frames"]]).reshape(picture.norms.shape) / 255
    np.testing.assert_allclose(heat, np.clip((picture.norms - low) / (high - low), 0, 1), atol=0.02)
    assert {n: f["summary_levels"] for n, f in enumerate(got["frames"]) if f["summary_levels"]} == picture.levels
    assert got["frames"][3]["image"].startswith("data:image/jpeg;base64,")


def test_summaries_stand_where_ptg_writes_them(bundle):
    assert sorted(written_levels(bundle)) == [7, 15]


def test_a_clip_is_encoded_once_for_all_who_ask(start, video, monkeypatch, served):
    server, runs = start(), []
    run = served.encoder.vision.run

    def counted(pixels):
        runs.append(1)
        return run(pixels)

    monkeypatch.setattr(served.encoder.vision, "run", counted)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: _post(server, video, format="npz").content, range(6)))
    assert len(runs) == 1 and len(set(answers)) == 1
    assert _post(server, video, format="npz").content == answers[0] and len(runs) == 1


def test_the_models_route_says_what_a_client_must_know(client, bundle):
    (model,) = client.models.list()
    assert model.max_model_len == bundle.max_context
    assert (model.tokens_per_clip, model.patch_tokens_per_clip) == (257, 1296)
    assert client.models.retrieve(NAME).id == NAME


def test_metrics_count_tokens_before_and_after_compression(start, video):
    server = start()
    _post(server, video)
    server.client().models.list()
    text = httpx.get(f"{server.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["gridpool_patch_tokens_total"]) == 1296 and float(values["gridpool_visual_tokens_total"]) == 257
    assert float(values['gridpool_requests_total{path="/v1/video/tokens",status="200"}']) == 1
    assert float(values['gridpool_stage_seconds_count{stage="encode+compress"}']) == 1
    assert {"gridpool_queue_depth", "gridpool_kv_positions", "gridpool_running_answers"} <= values.keys()


def test_load_clip_and_the_server_sample_the_same_frames(server, bundle, video):
    _, clip = load_clip(CLIPS / "shapes.mp4", bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
    got = httpx.post(f"{server.url}/v1/video/inspect", json={"model": NAME, "video_url": {"url": video}}, timeout=60).json()
    assert tuple(frame["index"] for frame in got["frames"]) == clip.indices
