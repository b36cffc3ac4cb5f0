"""A question asked about a stream again and again: `watch(bundle, source, question)` yields an answer every few seconds.

In: a video file, a V4L2 device (/dev/video0) or an RTSP address. A frame is sampled every window / T seconds, and the last
T of them are what a question is about (runtime/live.py). A file is read as fast as the engine takes it, and no frame is
lost. A camera does not wait: a second thread decodes and samples, up to T frames wait, and where the engine is slower the
oldest are dropped and counted.

T frames.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle import Bundle
from runtime.engine import EngineOptions
from runtime.errors import UsageError, VideoError, missing_package
from runtime.live import LiveEncoder
from runtime.pipeline import Answer, AskOptions, VideoChat
from runtime.preprocess import Preprocessor
from runtime.prompt import Prompt
from runtime.video import check_file, upright_rgb

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_TIMEOUT = 10.0  # seconds without a packet after which a network stream counts as gone
_SAME = 1e-9  # seconds: times are sums of fractions


@dataclass(frozen=True)
class WatchOptions:
    """every: seconds between answers; window: seconds that the T frames span; count: answers to give, 0 for no end;
    realtime: play a file at its own speed, as a camera would."""

    every: float = 2.0
    window: float = 8.0
    count: int = 0
    realtime: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "window"):
            if not 0.001 <= getattr(self, name) <= 86400:
                raise UsageError(f"{name} is {getattr(self, name)} s, expected 1ms to a day")
        if self.count < 0:
            raise UsageError(f"{self.count} answers; expected 0 (no end) or more")


@dataclass(frozen=True)
class Observation:
    """time: of the newest frame, in seconds of the stream; dropped: sampled frames lost since the observation before."""

    time: float
    answer: Answer
    dropped: int

    def as_dict(self) -> dict[str, Any]:
        answer = self.answer
        values = {"time": self.time, "text": answer.text, "ids": answer.ids, "frames": answer.frames}
        return values | {"dropped": self.dropped, "seconds": answer.seconds}


class Watch:
    """A bundle that looks at a stream; `encodes_once` as LiveEncoder says it."""

    def __init__(self, bundle: Bundle, backend: str = "auto", engine: EngineOptions = EngineOptions()):
        bundle.file("llm/decoder.onnx")  # says how to get one where the bundle has none
        self._chat = VideoChat.open(bundle, backend, engine, Prompt(bundle))
        self._live = LiveEncoder(bundle, self._chat.vision.engine)

    @property
    def encodes_once(self) -> bool:
        return self._live.encodes_once

    def answers(
        self, source: str, question: str, options: WatchOptions = WatchOptions(), ask: AskOptions = AskOptions()
    ) -> Iterator[Observation]:
        """An Observation every `options.every` seconds of the stream, and one of what is left at its end.

        VideoError for a source that can't be opened or breaks, PromptError for a question that can't be asked.
        """
        self._chat.prompt.ids(question)  # refused before the camera is opened
        self._live.clear()
        frames: Iterator[tuple[float, np.ndarray]] = sampled(
            source, options.window / self._live.frames, self._live.preprocessor, options
        )
        camera = _Camera(frames, self._live.frames) if options.realtime or is_live(source) else None
        due, last, is_new, given = options.every, 0.0, False, 0
        try:
            for last, frame in camera or frames:
                self._live.push(frame, last)
                is_new = True
                if last + _SAME < due:
                    continue
                while due <= last + _SAME:
                    due += options.every
                yield self._observe(source, question, ask, last, camera)
                is_new, given = False, given + 1
                if given == options.count:
                    return
            if is_new:
                yield self._observe(source, question, ask, last, camera)
        finally:
            if camera:
                camera.stop()

    def _observe(self, source: str, question: str, ask: AskOptions, seconds: float, camera: _Camera | None) -> Observation:
        for _ in self._chat.ask_about(self._live.visual(source), question, ask):
            pass
        return Observation(seconds, self._chat.answer, camera.take_dropped() if camera else 0)


def is_live(source: str) -> bool:
    """Whether frames of `source` come when they come, and not when they are asked for."""
    return source.startswith("/dev/video") or "://" in source


def sampled(
    source: str, step: float, preprocessor: Preprocessor, options: WatchOptions = WatchOptions()
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds after the first frame, RGB uint8 [h, w, 3] resized for the model) of the first frame of every `step` seconds."""
    import av

    start, first, wanted, taken = time.monotonic(), None, 0.0, 0
    with _opened(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        seconds = 0.0
        try:
            for frame in container.decode(stream):
                now = _time(frame, seconds, first, stream)
                first = now if first is None else first
                seconds = max(seconds, now - first)
                if options.realtime and not is_live(source):
                    time.sleep(max(0.0, start + seconds - time.monotonic()))
                if seconds + _SAME < wanted:
                    continue
                while wanted <= seconds + _SAME:
                    taken += 1
                    wanted = taken * step
                yield seconds, preprocessor.resize(upright_rgb(frame))
        except av.FFmpegError as error:
            raise VideoError(f"{source} is damaged or gone after {seconds:.2f} s ({error.strerror}); watch it again") from None


def _time(frame: VideoFrame, last: float, first: float | None, stream: Any) -> float:
    """Seconds on the stream's clock; a source without times counts frames."""
    if frame.time is not None:
        return frame.time
    return last + (first or 0.0) + float(1 / stream.average_rate if stream.average_rate else 0.04)


def _opened(source: str) -> InputContainer:
    try:
        import av
    except ImportError:
        raise missing_package("av", "watching a stream", "runtime") from None
    if "://" in source and not source.startswith(("rtsp://", "rtsps://")):
        raise VideoError(f"{source} is no kind of stream that can be watched; expected a video file, /dev/videoN or rtsp://…")
    try:
        if source.startswith("/dev/video"):
            container = av.open(source, format="v4l2")
        elif is_live(source):
            container = av.open(source, options={"rtsp_transport": "tcp", "fflags": "nobuffer"}, timeout=_TIMEOUT)
        else:
            check_file(Path(source))
            container = av.open(f"file:{source}", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{source} can't be watched ({reason}); expected a video file, /dev/videoN or rtsp://…") from None
    if not container.streams.video:
        container.close()
        raise VideoError(f"{source} has no video stream that can be decoded; expected a video")
    return container


class _Camera:
    """Frames taken by a thread of its own; the newest `capacity` wait."""

    def __init__(self, frames: Iterator[tuple[float, np.ndarray]], capacity: int):
        self._waiting: deque[tuple[float, np.ndarray]] = deque()
        self._changed = threading.Condition()
        self._dropped, self._ended, self._stopped = 0, False, False
        self._failure: Exception | None = None
        threading.Thread(target=self._work, args=(frames, capacity), name="camera", daemon=True).start()

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
        """Frames that were dropped since the last time that this was asked."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def stop(self) -> None:
        self._stopped = True

    def _work(self, frames: Iterator[tuple[float, np.ndarray]], capacity: int) -> None:
        try:
            for frame in frames:
                with self._changed:
                    self._waiting.append(frame)
                    if len(self._waiting) > capacity:
                        self._waiting.popleft()
                        self._dropped += 1
                    self._changed.notify()
                if self._stopped:
                    break
        except Exception as error:
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify()
