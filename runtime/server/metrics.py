"""Prometheus metrics of one server, in a separate registry: `Metrics(...).text()` is what /metrics returns."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runtime.llm.chat import LanguageModel, Usage
from runtime.server.admission import Admission
from runtime.server.clips import ClipStore
from runtime.server.memory import Memory

_PREFIX = "gridpool_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters that the routes fill, and gauges that are read on request."""

    def __init__(self, admission: Admission, memory: Memory, clips: ClipStore, llms: Iterable[LanguageModel]):
        self.registry = CollectorRegistry()

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
        self.registry.register(_Now(admission, memory, clips, list(llms)))

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


class _Now(Collector):
    def __init__(self, admission: Admission, memory: Memory, clips: ClipStore, llms: list[LanguageModel]):
        self.admission, self.memory, self.clips, self.llms = admission, memory, clips, llms

    def collect(self) -> Iterable[GaugeMetricFamily]:
        busy = [llm.busy() for llm in self.llms]
        values = {
            "accepted_requests": ("requests being worked on", self.admission.accepted),
            "queue_limit": ("requests that are accepted at most", self.admission.limit),
            "request_bytes": ("bytes of bodies and clips that requests hold", self.memory.held),
            "queue_depth": ("answers that wait for a place in the batch", sum(one["waiting"] for one in busy)),
            "running_answers": ("answers that are being decoded", sum(one["running"] for one in busy)),
            "kv_positions": ("KV positions in use by running answers", sum(one["kv_positions"] for one in busy)),
            "clip_cache_bytes": ("visual tokens kept", self.clips.bytes),
            "clip_cache_clips": ("clips kept", len(self.clips)),
        }
        for name, (text, value) in values.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
