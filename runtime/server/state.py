"""What the routes share: options, loaded models, clip cache, admission and metrics of one server."""

from __future__ import annotations

from runtime.server.admission import Admission
from runtime.server.clips import ClipStore
from runtime.server.memory import Memory
from runtime.server.metrics import Metrics
from runtime.server.models import Models
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

    def close(self) -> None:
        self.clips.close()
        self.models.close()
