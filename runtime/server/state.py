"""What the routes share: options, loaded models, clip cache, admission and metrics of one server."""

from __future__ import annotations

import asyncio
import time

from runtime.llm.chat import DeadlineError
from runtime.server.admission import Admission
from runtime.server.clip_encoder import EncodedClip
from runtime.server.clips import ClipStore
from runtime.server.media import Media
from runtime.server.memory import Memory
from runtime.server.metrics import Metrics
from runtime.server.models import Models, ServedModel
from runtime.server.options import ServerOptions


class State:
    def __init__(self, models: Models, options: ServerOptions):
        self.models, self.options = models, options
        self.clips = ClipStore(options.cache, options.decode_seconds)
        self.memory = Memory(options.memory)
        self.admission = Admission(options)
        self.metrics = Metrics(self.admission, self.memory, self.clips, models.llms)

    def not_ready(self) -> str | None:
        """Why a load balancer should send requests elsewhere; None if it should not."""
        if self.admission.draining:
            return "draining"
        if not all(llm.healthy for llm in self.models.llms):
            return "the LLM does not work"
        return None

    async def encode(self, model: ServedModel, media: Media, deadline: float) -> tuple[EncodedClip, bool]:
        """The encoded clip, and whether the cache had it. Counts it in the metrics. DeadlineError after `deadline`."""
        try:
            clip, cached = await asyncio.wait_for(self.clips.get(model.encoder, media), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
            raise DeadlineError("the request's deadline passed while its clip was being encoded") from None
        self.metrics.clips.labels("hit" if cached else "miss").inc()
        self.metrics.tokens_in.inc(model.bundle.manifest.patch_tokens)
        self.metrics.tokens_out.inc(len(clip.tokens))
        if not cached:
            self.metrics.stages(clip.seconds)
        return clip, cached

    def close(self) -> None:
        self.clips.close()
        self.models.close()
