"""Generated video clips with questions whose answers are known: the world that the demo checkpoint was trained in.

A clip shows one to three objects of different shape and colour that appear one after another, stand or move in a straight
line without touching, and sometimes change colour once; a star may flash for a single frame and a letter may be shown for
a while, as small as one patch. Each kind of question needs something else to survive compression: `flash` one frame,
`letter` one patch, `direction` and `order` the way things change over time.

T frames of S x S pixels, S = SIZE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

SIZE = 112
PATCH = 14
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 60, 210),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
NUMBERS = ("zero", "one", "two", "three")
KINDS = ("color", "shape", "direction", "count", "order", "change", "letter", "flash")
LETTERS = {  # 3 x 5 pixel rows
    "a": ("010", "101", "111", "101", "101"),
    "c": ("111", "100", "100", "100", "111"),
    "e": ("111", "100", "110", "100", "111"),
    "h": ("101", "101", "111", "101", "101"),
    "t": ("111", "010", "010", "010", "010"),
    "x": ("101", "101", "010", "101", "101"),
}
MIN_FRAMES = 8
_MIN_DISTANCE = 32  # pixels between the centres of two objects, at any time
_PLACEMENTS = 80  # tries to keep them apart


class Question(NamedTuple):
    """`kind` is one of KINDS; `answer` is one word."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class DemoClip:
    """frames uint8 RGB [T, S, S, 3] and what can be asked about them."""

    frames: np.ndarray
    questions: list[Question]


def make_clip(rng: np.random.Generator, frames: int = 16) -> DemoClip:
    """Draw a clip from `rng`; the same generator state gives the same clip. It takes MIN_FRAMES frames to show its events."""
    if frames < MIN_FRAMES:
        raise ValueError(f"{frames} frames; expected at least {MIN_FRAMES}")
    colors, shapes = rng.permutation(list(COLORS)).tolist(), rng.permutation(SHAPES).tolist()
    objects = _objects(rng, frames, colors[:3], shapes, later_color=colors[3])
    flash = _flash(rng, frames, colors[4]) if rng.random() < 0.6 else None
    letter = _letter(rng, frames) if rng.random() < 0.6 else None
    return DemoClip(_draw(rng, frames, objects, flash, letter), _questions(rng, frames, objects, flash, letter))


@dataclass(frozen=True)
class _Object:
    shape: str
    color: str
    radius: int
    direction: str
    appears: int  # first frame that shows it
    path: np.ndarray  # [T, 2], x and y of its centre
    later_color: str = ""
    changes: int | None = None  # first frame in the later colour

    def color_at(self, frame: int) -> str:
        return self.color if self.changes is None or frame < self.changes else self.later_color


@dataclass(frozen=True)
class _Flash:
    color: str
    frame: int
    radius: int
    center: np.ndarray  # x and y


@dataclass(frozen=True)
class _Letter:
    name: str
    start: int
    stop: int
    left: int
    top: int
    inset: tuple[int, int]  # x and y of the glyph in its patch


def _objects(rng: np.random.Generator, frames: int, colors: list[str], shapes: list[str], later_color: str) -> list[_Object]:
    count = int(rng.integers(1, 4))
    gap = max(1, frames // 5)
    appears = [0]
    for _ in range(1, count):
        appears.append(appears[-1] + int(rng.integers(gap, max(gap, int(frames * 0.35)) + 1)))
    changing = int(rng.integers(count)) if rng.random() < 0.5 and frames >= 4 else None
    for _ in range(_PLACEMENTS):
        objects = [_object(rng, frames, *looks) for looks in zip(shapes[:count], colors[:count], appears, strict=True)]
        if _apart(objects):
            break
    if changing is not None:
        visible = frames - objects[changing].appears
        if visible >= 4:
            after = int(rng.integers(max(1, int(visible * 0.35)), max(2, int(visible * 0.65)) + 1))
            objects[changing] = replace(objects[changing], later_color=later_color, changes=appears[changing] + after)
    return objects


def _object(rng: np.random.Generator, frames: int, shape: str, color: str, appears: int) -> _Object:
    radius = int(rng.integers(13, 18))
    direction = str(rng.choice(list(DIRECTIONS)))
    low, high = radius, SIZE - 1 - radius
    distance = min(rng.uniform(42, 70), high - low)
    progress = np.clip((np.arange(frames) - appears) / max(1, frames - 1 - appears), 0, 1)
    path = np.empty((frames, 2))
    for axis, step in enumerate(DIRECTIONS[direction]):
        # Leave room for the way it will go.
        start = rng.uniform(low + distance * (step < 0), high - distance * (step > 0))
        path[:, axis] = start + step * distance * progress
    return _Object(shape, color, radius, direction, appears, path)


def _apart(objects: list[_Object]) -> bool:
    for i, one in enumerate(objects):
        for other in objects[:i]:
            both = max(one.appears, other.appears)
            distance = np.linalg.norm(one.path[both:] - other.path[both:], axis=1)
            if distance.size and distance.min() < _MIN_DISTANCE:
                return False
    return True


def _flash(rng: np.random.Generator, frames: int, color: str) -> _Flash:
    return _Flash(color, int(rng.integers(frames)), int(rng.integers(10, 14)), rng.uniform(14, SIZE - 14, 2))


def _letter(rng: np.random.Generator, frames: int) -> _Letter:
    shown = int(rng.integers(max(1, frames // 2), frames + 1))
    start = int(rng.integers(0, frames - shown + 1))
    left, top = (int(n) * PATCH for n in rng.integers(0, SIZE // PATCH, 2))
    inset = int(rng.integers(3, 6)), int(rng.integers(1, 4))
    return _Letter(str(rng.choice(list(LETTERS))), start, start + shown, left, top, inset)


def _draw(
    rng: np.random.Generator, frames: int, objects: list[_Object], flash: _Flash | None, letter: _Letter | None
) -> np.ndarray:
    background = rng.uniform(30, 110) + rng.uniform(-12, 12, 3)
    noise = rng.uniform(0, 9)
    images = np.empty((frames, SIZE, SIZE, 3), np.float32)
    images[:] = background
    for frame, image in enumerate(images):
        for thing in objects:
            if frame >= thing.appears:
                _paint(image, thing.shape, thing.radius, thing.path[frame], COLORS[thing.color_at(frame)])
        if letter and letter.start <= frame < letter.stop:
            _write(image, letter)
        if flash and frame == flash.frame:
            _paint(image, "star", flash.radius, flash.center, COLORS[flash.color])
    if noise > 1:
        images += noise * rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images, 0, 255).astype(np.uint8)


def _paint(image: np.ndarray, shape: str, radius: int, center: np.ndarray, color: tuple[int, int, int]) -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    x, y = np.rint(center)
    image[_inside(shape, radius, columns - x, rows - y)] = color


def _inside(shape: str, radius: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the pixels at (x, y) from its centre a shape covers."""
    box = (abs(x) <= radius) & (abs(y) <= radius)
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        return (abs(x) <= 0.85 * radius) & (abs(y) <= 0.85 * radius)
    if shape == "triangle":
        return box & (y <= 0.8 * radius) & (abs(x) <= 0.55 * (y + radius))
    if shape == "cross":
        return box & ((abs(x) <= 0.33 * radius) | (abs(y) <= 0.33 * radius))
    diamond = abs(x) + abs(y) <= 0.55 * radius
    rays = (abs(x) <= 0.12 * radius) | (abs(y) <= 0.12 * radius) | (abs(abs(x) - abs(y)) <= 0.15 * radius)
    return box & (diamond | rays)  # star


def _write(image: np.ndarray, letter: _Letter) -> None:
    image[letter.top : letter.top + PATCH, letter.left : letter.left + PATCH] = 10
    glyph = np.array([[pixel == "1" for pixel in row] for row in LETTERS[letter.name]]).repeat(2, axis=0).repeat(2, axis=1)
    top, left = letter.top + letter.inset[1], letter.left + letter.inset[0]
    image[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 250


def _questions(
    rng: np.random.Generator, frames: int, objects: list[_Object], flash: _Flash | None, letter: _Letter | None
) -> list[Question]:
    asked = []
    for thing in objects:
        changes = thing.changes is not None
        if changes:
            asked.append(Question("change", f"what color does the {thing.shape} become ?", thing.later_color))
        else:
            asked.append(Question("color", f"what color is the {thing.shape} ?", thing.color))
            asked.append(Question("shape", f"what shape is the {thing.color} object ?", thing.shape))
        if frames - thing.appears >= max(3, frames // 2):
            name = thing.shape if changes or rng.random() < 0.5 else f"{thing.color} object"
            asked.append(Question("direction", f"which way does the {name} move ?", thing.direction))
    asked.append(Question("count", "how many objects are there ?", NUMBERS[len(objects)]))
    if len(objects) > 1:
        for when, thing in (("first", objects[0]), ("last", objects[-1])):
            if thing.changes is None and rng.random() < 0.5:
                asked.append(Question("order", f"which color appears {when} ?", thing.color))
            else:
                asked.append(Question("order", f"which shape appears {when} ?", thing.shape))
    if letter:
        asked.append(Question("letter", "which letter is shown ?", letter.name))
    if flash:
        asked.append(Question("flash", "what color is the flash ?", flash.color))
    return asked
