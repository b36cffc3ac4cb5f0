"""What Prometheus is told, of stand-ins whose numbers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.llm.chat import Usage
from runtime.server.metrics import Metrics


class Clips:
    bytes = 512

    def __len__(self) -> int:
        return 3


def busy(waiting: int, running: int, positions: int) -> SimpleNamespace:
    return SimpleNamespace(busy=lambda: {"waiting": waiting, "running": running, "kv_positions": positions})


@pytest.fixture
def metrics() -> Metrics:
    admission, memory = SimpleNamespace(accepted=5, limit=40), SimpleNamespace(held=1234)
    return Metrics(admission, memory, Clips(), [busy(1, 2, 30), busy(4, 8, 500)])


def values(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines) if "_created" not in name}


def test_what_is_going_on_is_read_when_somebody_asks(metrics):
    shown = values(metrics)
    assert {name: shown[f"gridpool_{name}"] for name in (
        "accepted_requests", "queue_limit", "request_bytes", "queue_depth", "running_answers", "kv_positions", "clip_cache_bytes",
        "clip_cache_clips",
    )} == {
        "accepted_requests": 5, "queue_limit": 40, "request_bytes": 1234, "queue_depth": 5, "running_answers": 10,
        "kv_positions": 530, "clip_cache_bytes": 512, "clip_cache_clips": 3,
    }  # fmt: skip
    assert b"# TYPE gridpool_queue_depth gauge" in metrics.text()


def test_what_answers_cost_adds_up(metrics):
    for _ in range(2):
        metrics.used(Usage(prompt_tokens=100, completion_tokens=20, cached_tokens=30, seconds={"prefill": 0.2, "decode": 3}))
    metrics.tokens_in.inc(1296)
    metrics.tokens_out.inc(257)
    metrics.clips.labels("hit").inc()
    metrics.first_token.observe(0.3)
    shown = values(metrics)
    assert shown["gridpool_prompt_tokens_total"] == 200
    assert shown["gridpool_completion_tokens_total"] == 40
    assert shown["gridpool_cached_prompt_tokens_total"] == 60
    assert (shown["gridpool_patch_tokens_total"], shown["gridpool_visual_tokens_total"]) == (1296, 257)
    assert shown['gridpool_clips_total{cache="hit"}'] == 1
    assert shown['gridpool_stage_seconds_sum{stage="prefill"}'] == pytest.approx(0.4)
    assert shown['gridpool_stage_seconds_count{stage="decode"}'] == 2
    assert shown['gridpool_stage_seconds_bucket{le="2.5",stage="decode"}'] == 0
    assert shown['gridpool_stage_seconds_bucket{le="5.0",stage="decode"}'] == 2
    assert shown['gridpool_time_to_first_token_seconds_bucket{le="0.25"}'] == 0
    assert shown['gridpool_time_to_first_token_seconds_bucket{le="0.5"}'] == 1
