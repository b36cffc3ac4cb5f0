"""A question asked about a stream again and again: `Watch(bundle).answers(source, question)` yields an answer every few seconds.

In: a video file, a V4L2 device (/dev/video0) or an RTSP address. A frame is sampled every window / T seconds, and a
question is about the last T of them (runtime/vision/live.py). A file is read as fast as the engine takes it, and no frame is
lost. A camera does not wait: a second thread decodes and samples, up to T frames wait, and where the engine is slower the
oldest are dropped and counted. Frames that a camera's network lost are counted too (runtime/media/stream.py).

T frames.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.chat import Answer, AskOptions, VideoChat
from runtime.core.options import check_limits, option
from runtime.engine import EngineOptions
from runtime.media.preprocess import Preprocessor
from runtime.media.stream import Stream, is_live
from runtime.vision.live import LiveEncoder

_SAME = 1e-9  # seconds: times are sums of fractions


def duration(text: str) -> float:
    """Seconds, of a text such as "2s", "500ms" or "2". ValueError for another."""
    unit, scale = next((one for one in (("ms", 0.001), ("s", 1.0)) if text.endswith(one[0])), ("", 1.0))
    try:
        return float(text.removesuffix(unit)) * scale
    except ValueError:
        raise ValueError("expected a time such as 2s or 500ms") from None


def _duration_option(default: float, help: str) -> Any:
    return option(default, help, metavar="TIME", parse=duration, at_least=0.001, at_most=86400)


@dataclass(frozen=True)
class WatchOptions:
    """When to answer, and about what; times in seconds."""

    every: float = _duration_option(2.0, "between answers, e.g. 2s or 500ms")
    window: float = _duration_option(8.0, "what the sampled frames span")
    count: int = option(0, "stop after so many answers (default 0: at the end)", at_least=0)
    realtime: bool = option(False, "play a file at its own speed, as a camera would")

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class Observation:
    """time: of the newest frame, in seconds of the stream.

    Since the last observation: dropped, sampled frames for which the engine was too slow; lost, frames of a camera that arrived
    damaged or without their reference frames.
    """

    time: float
    answer: Answer
    dropped: int
    lost: int = 0

    def as_dict(self) -> dict[str, Any]:
        answer = self.answer
        values = {"time": self.time, "text": answer.text, "ids": answer.ids, "frames": answer.frames}
        return values | {"dropped": self.dropped, "seconds": answer.seconds}


class Watch:
    """A bundle that watches a stream; `encodes_once`: whether each frame is encoded once, see LiveEncoder."""

    def __init__(self, bundle: Bundle, backend: str = "auto", engine: EngineOptions = EngineOptions()):
        self._chat = VideoChat.open(bundle, backend, engine)
        self._live = LiveEncoder(bundle, self._chat.vision.engine)

    @property
    def encodes_once(self) -> bool:
        return self._live.encodes_once

    def answers(
        self, source: str, question: str, options: WatchOptions = WatchOptions(), ask: AskOptions = AskOptions()
    ) -> Iterator[Observation]:
        """An Observation every `options.every` seconds of the stream, and one at its end for frames since the last.

        VideoError for a source that can't be opened or breaks, PromptError for a question that can't be asked.
        """
        self._chat.prompt.ids(question)  # refused before the camera is opened
        self._live.clear()
        stream = Stream(source)
        frames = sampled(stream, options.window / self._live.frames, self._live.preprocessor, options)
        camera = _Camera(frames, self._live.frames) if options.realtime or is_live(source) else None
        due, last, is_new, count = options.every, 0.0, False, 0
        try:
            for last, frame in camera or frames:
                self._live.push(frame, last)
                is_new = True
                if last + _SAME < due:
                    continue
                while due <= last + _SAME:
                    due += options.every
                yield self._observe(stream, question, ask, last, camera)
                is_new, count = False, count + 1
                if count == options.count:
                    return
            if is_new:
                yield self._observe(stream, question, ask, last, camera)
        finally:
            if camera:
                camera.stop()

    def _observe(self, stream: Stream, question: str, ask: AskOptions, seconds: float, camera: _Camera | None) -> Observation:
        for _ in self._chat.ask_about(self._live.visual(stream.source), question, ask):
            pass
        return Observation(seconds, self._chat.answer, camera.take_dropped() if camera else 0, stream.take_lost())


def sampled(
    stream: Stream, step: float, preprocessor: Preprocessor, options: WatchOptions = WatchOptions()
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds after the first frame, RGB uint8 [h, w, 3] resized for the model) of the first frame of every `step` seconds."""
    start, due, steps = time.monotonic(), 0.0, 0
    for seconds, rgb in stream:
        if options.realtime and not is_live(stream.source):
            time.sleep(max(0.0, start + seconds - time.monotonic()))
        if seconds + _SAME < due:
            continue
        while due <= seconds + _SAME:
            steps += 1
            due = steps * step
        yield seconds, preprocessor.resize(rgb())


class _Camera:
    """Frames read by a second thread; the newest `capacity` wait."""

    def __init__(self, frames: Iterator[tuple[float, np.ndarray]], capacity: int):
        self._waiting: deque[tuple[float, np.ndarray]] = deque(maxlen=capacity)
        self._changed = threading.Condition()
        self._dropped, self._ended, self._stopped = 0, False, False
        self._failure: Exception | None = None
        threading.Thread(target=self._work, args=(frames,), name="camera", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    if self._failure:
                        raise self._failure
                    return
                frame = self._waiting.popleft()
            yield frame

    def take_dropped(self) -> int:
        """Frames dropped since the last call."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def stop(self) -> None:
        self._stopped = True

    def _work(self, frames: Iterator[tuple[float, np.ndarray]]) -> None:
        try:
            for frame in frames:
                with self._changed:
                    self._dropped += len(self._waiting) == self._waiting.maxlen
                    self._waiting.append(frame)
                    self._changed.notify()
                if self._stopped:
                    break
        except Exception as error:
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify()
