"""What /metrics says, in Prometheus' own text format, of what was counted and of what is true when somebody asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.llm.chat import Usage
from runtime.server.metrics import Metrics

BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]


class Clips:
    bytes = 700

    def __len__(self) -> int:
        return 3


@pytest.fixture
def metrics() -> Metrics:
    llms = [
        SimpleNamespace(busy=lambda: {"running": 1, "waiting": 2, "kv_positions": 40}),
        SimpleNamespace(busy=lambda: {"running": 4, "waiting": 8, "kv_positions": 100}),
    ]
    return Metrics(SimpleNamespace(accepted=5, limit=6), SimpleNamespace(held=900), Clips(), llms)


def values(metrics: Metrics) -> dict[str, float]:
    """{name, then its labels' values in the order of their names: value}."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {" ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value for sample in samples}


def test_gauges_are_read_when_somebody_asks_and_add_up_all_llms(metrics: Metrics) -> None:
    gauges = {
        "accepted_requests": 5, "queue_limit": 6, "request_bytes": 900, "queue_depth": 10, "running_answers": 5, "kv_positions": 140,
        "clip_cache_bytes": 700, "clip_cache_clips": 3,
    }  # fmt: skip
    got = values(metrics)
    assert {name: got[f"gridpool_{name}"] for name in gauges} == gauges


def test_what_an_answer_cost_is_counted_by_kind_and_stage(metrics: Metrics) -> None:
    metrics.used(Usage(30, 7, 11, seconds={"prefill": 0.5, "decode": 2.0}))
    metrics.used(Usage(1, 2, 3, seconds={"decode": 1.0}))
    metrics.stages({"decode": 4.0})
    got = values(metrics)
    assert [got[f"gridpool_{name}_total"] for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens")] == [31, 9, 14]
    assert got["gridpool_stage_seconds_sum decode"] == 7 and got["gridpool_stage_seconds_count decode"] == 3
    assert got["gridpool_stage_seconds_sum prefill"] == 0.5


def test_counters_are_told_apart_by_their_labels(metrics: Metrics) -> None:
    metrics.requests.labels("/v1/models", "200").inc()
    metrics.requests.labels("/v1/models", "404").inc(2)
    metrics.clips.labels("hit").inc(3)
    metrics.tokens_in.inc(1296)
    metrics.tokens_out.inc(257)
    got = values(metrics)
    assert (got["gridpool_requests_total /v1/models 200"], got["gridpool_requests_total /v1/models 404"]) == (1, 2)
    assert got["gridpool_clips_total hit"] == 3
    assert (got["gridpool_patch_tokens_total"], got["gridpool_visual_tokens_total"]) == (1296, 257)


def test_times_are_sorted_from_five_milliseconds_to_two_minutes(metrics: Metrics) -> None:
    for bound in BOUNDS:
        metrics.stages({"decode": bound})
        metrics.first_token.observe(bound)
    metrics.first_token.observe(121)
    got = values(metrics)
    for name, stage in (("stage_seconds", " decode"), ("time_to_first_token_seconds", "")):
        counts = [got[f"gridpool_{name}_bucket {float(bound)}{stage}"] for bound in BOUNDS]
        assert counts == list(range(1, len(BOUNDS) + 1))
    assert got["gridpool_time_to_first_token_seconds_bucket +Inf"] == len(BOUNDS) + 1
