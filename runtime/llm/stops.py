"""Stop strings: text in pieces -> the same text up to the first stop string, which is left out.

What may be the beginning of a stop string is held back until the next piece decides.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """`stopped` is True once a stop string was met; pieces after that are dropped."""

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop for stop in stops if stop]
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that is certain now."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back when the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)
