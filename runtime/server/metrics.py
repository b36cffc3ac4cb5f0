"""Prometheus metrics of one server, in a registry of its own: `Metrics(...).text()` is what /metrics returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime.llm.chat import LanguageModel, Usage
from runtime.server.admission import Admission
from runtime.server.clips import ClipStore
from runtime.server.memory import Memory

_PREFIX = "gridpool_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters that the routes increment, and gauges whose values are computed when they are read."""

    def __init__(self, admission: Admission, memory: Memory, clips: ClipStore, llms: Iterable[LanguageModel]):
        self.registry, llms = CollectorRegistry(), list(llms)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=self.registry)

        self.requests = counter("requests", "answered requests", "path", "status")
        self.tokens_in = counter("patch_tokens", "patch tokens before compression")
        self.tokens_out = counter("visual_tokens", "visual tokens after compression")
        self.prompt_tokens = counter("prompt_tokens", "tokens of prompts, visual tokens included")
        self.cached_tokens = counter("cached_prompt_tokens", "tokens of prompts whose KV was reused")
        self.completion_tokens = counter("completion_tokens", "tokens of answers")
        self.clips = counter("clips", "clips asked about", "cache")
        self.stage = Histogram(_PREFIX + "stage_seconds", "time per stage", ("stage",), buckets=_SECONDS, registry=self.registry)
        self.first_token = Histogram(
            _PREFIX + "time_to_first_token_seconds", "from the request to its first text", buckets=_SECONDS, registry=self.registry
        )

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(_PREFIX + name, text, registry=self.registry).set_function(value)

        gauge("accepted_requests", "requests in progress", lambda: admission.accepted)
        gauge("queue_limit", "most requests that are in progress at a time", lambda: admission.limit)
        gauge("request_bytes", "bytes of bodies and clips that requests hold", lambda: memory.held)
        gauge("queue_depth", "answers that wait for a place in the batch", lambda: sum(llm.busy()["waiting"] for llm in llms))
        gauge("running_answers", "answers that are being decoded", lambda: sum(llm.busy()["running"] for llm in llms))
        gauge("kv_positions", "KV positions in use by running answers", lambda: sum(llm.busy()["kv_positions"] for llm in llms))
        gauge("clip_cache_bytes", "bytes in the cache of encoded clips", lambda: clips.bytes)
        gauge("clip_cache_clips", "clips in the cache", lambda: len(clips))

    def used(self, usage: Usage) -> None:
        """Count what one answer cost."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.completion_tokens.inc(usage.completion_tokens)
        self.stages(usage.seconds)

    def stages(self, seconds: dict[str, float]) -> None:
        for stage, duration in seconds.items():
            self.stage.labels(stage).observe(duration)

    def text(self) -> bytes:
        return generate_latest(self.registry)
