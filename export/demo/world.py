"""Generated video clips with questions whose answers are known: the world that the demo checkpoint was trained in.

A clip shows one to three objects of different shape and colour that appear one after another, stand or move, overlap, change
colour or vanish, before a background with texture and clutter. In some clips the camera pans instead; a grey bar may pass in front;
a letter may be shown for a while, in two sizes; a star may flash for one frame or two. Noise and JPEG damage of several strengths
lie on top. Each kind of question needs something else to survive compression: `flash` one frame, `letter` one patch, `direction`,
`camera` and `where` positions, `order`, `change` and `vanish` the way things follow each other.

    scene = make_scene(rng, frames)    what happens: plain numbers        export/demo/draw.py makes pictures of it
    questions(rng, scene)              what can be asked about it

T frames of S x S pixels, S = SIZE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

PATCH = 14
GRID = 9
SIZE = PATCH * GRID
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
CORNERS = {(-1, -1): "topleft", (1, -1): "topright", (-1, 1): "bottomleft", (1, 1): "bottomright"}
NUMBERS = ("one", "two", "three")
LETTERS = {  # 3 x 5 pixel rows
    "a": ("010", "101", "111", "101", "101"),
    "c": ("111", "100", "100", "100", "111"),
    "e": ("111", "100", "110", "100", "111"),
    "h": ("101", "101", "111", "101", "101"),
    "t": ("111", "010", "010", "010", "010"),
    "x": ("101", "101", "010", "101", "101"),
}
# kind of question -> the answers that it can have
KINDS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "count": NUMBERS,
    "order": (*SHAPES, *COLORS),
    "change": tuple(COLORS),
    "vanish": SHAPES,
    "letter": tuple(LETTERS),
    "flash": tuple(COLORS),
    "where": tuple(CORNERS.values()),
    "camera": tuple(DIRECTIONS),
}
SPLITS = ("train", "validation", "test")
MIN_FRAMES = 8
_MIN_DISTANCE = 26  # pixels between the centres of two objects, at any time: they may overlap at their edges
_CLEAR = 14  # pixels from the middle of the picture from which on a corner is named
_TRIES = 60


class Question(NamedTuple):
    """`kind` is one of KINDS; `answer` is one word."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Thing:
    """An object, seen in the frames appears <= t < vanishes."""

    shape: str
    color: str
    radius: int
    direction: str  # of its own motion
    path: np.ndarray  # [T, 2], x and y of its centre on the screen
    appears: int
    vanishes: int
    later_color: str = ""
    changes: int | None = None  # first frame in the later colour

    def color_at(self, frame: int) -> str:
        return self.color if self.changes is None or frame < self.changes else self.later_color


@dataclass(frozen=True)
class Flash:
    """A star in the frames start <= t < stop, one or two."""

    color: str
    start: int
    stop: int
    radius: int
    center: tuple[float, float]  # x and y


@dataclass(frozen=True)
class Letter:
    """A white glyph on a black plate of scale/2 x scale/2 patches, in the frames start <= t < stop."""

    name: str
    start: int
    stop: int
    scale: int  # pixels of the picture a pixel of the glyph
    left: int  # of the plate, in pixels
    top: int
    inset: tuple[int, int]  # x and y of the glyph in its plate

    @property
    def plate(self) -> int:
        return PATCH * self.scale // 2


@dataclass(frozen=True)
class Bar:
    """A grey bar in front of everything but letters and flashes; its left or upper edge in each frame."""

    upright: bool
    width: int
    edge: np.ndarray  # [T]
    grey: int


@dataclass(frozen=True)
class Damage:
    """Strength of Gaussian noise in grey levels, and the JPEG quality (None: no JPEG)."""

    noise: float
    jpeg: int | None


@dataclass(frozen=True)
class Scene:
    frames: int
    things: list[Thing]
    letters: list[Letter]
    flash: Flash | None
    bar: Bar | None
    camera: str  # one of DIRECTIONS
    pan: np.ndarray  # [T, 2], how far the camera has moved, in pixels
    damage: Damage
    look: int  # seed of background, clutter and noise


def choices(question: Question) -> tuple[str, ...]:
    """The answers that a question of this wording can have."""
    if question.kind != "order":
        return KINDS[question.kind]
    return SHAPES if question.question.startswith("which shape") else tuple(COLORS)


def clip_rng(split: str, seed: int, *index: int) -> np.random.Generator:
    """The generator of one clip: equal arguments give equal clips, and no two splits or indices share a stream."""
    return np.random.default_rng(np.random.SeedSequence((seed, *index), spawn_key=(SPLITS.index(split),)))


def make_scene(rng: np.random.Generator, frames: int = 16) -> Scene:
    """Draw what happens in a clip from `rng`; the same generator state gives the same scene.

    Raises ValueError for fewer than 4 frames, which can't show the events.
    """
    if frames < 4:
        raise ValueError(f"{frames} frames; expected at least 4")
    colors, shapes = rng.permutation(list(COLORS)).tolist(), rng.permutation(SHAPES).tolist()
    camera, pan = _camera(rng, frames)
    things = _things(rng, frames, pan, colors[:3], shapes, later_color=colors[3])
    return Scene(
        frames,
        things,
        _letters(rng, frames, things),
        _flash(rng, frames, colors[4]) if rng.random() < 0.6 else None,
        _bar(rng, frames) if rng.random() < 0.25 else None,
        camera,
        pan,
        draw_damage(rng),
        int(rng.integers(2**63)),
    )


def draw_damage(rng: np.random.Generator) -> Damage:
    """Noise in every picture, JPEG in two of five."""
    return Damage(float(rng.uniform(0, 9)), int(rng.integers(35, 91)) if rng.random() < 0.4 else None)


def still(scene: Scene, frame: int) -> Scene:
    """One frame of a scene as a scene of its own: what is seen then, in the colours of then."""
    moment = slice(frame, frame + 1)
    things = [
        replace(
            thing, path=thing.path[moment], color=thing.color_at(frame), direction="nowhere", changes=None, appears=0, vanishes=1
        )
        for thing in scene.things
        if thing.appears <= frame < thing.vanishes
    ]
    flash = scene.flash if scene.flash and scene.flash.start <= frame < scene.flash.stop else None
    return replace(
        scene,
        frames=1,
        things=things,
        letters=[replace(letter, start=0, stop=1) for letter in scene.letters if letter.start <= frame < letter.stop],
        flash=replace(flash, start=0, stop=1) if flash else None,
        bar=replace(scene.bar, edge=scene.bar.edge[moment]) if scene.bar else None,
        camera="nowhere",
        pan=scene.pan[moment],
    )


def _camera(rng: np.random.Generator, frames: int) -> tuple[str, np.ndarray]:
    if rng.random() >= 0.25:
        return "nowhere", np.zeros((frames, 2))
    direction = str(rng.choice([name for name in DIRECTIONS if name != "nowhere"]))
    distance = rng.uniform(36, 54)
    return direction, np.outer(np.linspace(0, distance, frames), DIRECTIONS[direction])


def _things(
    rng: np.random.Generator, frames: int, pan: np.ndarray, colors: list[str], shapes: list[str], later_color: str
) -> list[Thing]:
    count = int(rng.integers(1, 4))
    gap = max(1, frames // 5)
    appears = [0]
    for _ in range(1, count):
        appears.append(appears[-1] + int(rng.integers(gap, max(gap, int(frames * 0.35)) + 1)))
    for _ in range(_TRIES):
        things = [_thing(rng, frames, pan, *looks) for looks in zip(shapes[:count], colors[:count], appears, strict=True)]
        if _apart(things):
            break
    # Each event happens to one object, and leaves enough frames before and after it to be seen.
    if rng.random() < 0.45:
        chosen = int(rng.integers(count))
        seen = frames - things[chosen].appears
        if seen >= 4:
            after = int(rng.integers(max(1, int(seen * 0.35)), max(2, int(seen * 0.65)) + 1))
            things[chosen] = replace(things[chosen], later_color=later_color, changes=things[chosen].appears + after)
    elif count > 1:
        chosen = int(rng.integers(count))
        seen = frames - things[chosen].appears
        if seen >= 4:
            after = int(rng.integers(max(2, int(seen * 0.4)), max(2, int(seen * 0.8)) + 1))
            things[chosen] = replace(things[chosen], vanishes=things[chosen].appears + after)
    return things


def _thing(rng: np.random.Generator, frames: int, pan: np.ndarray, shape: str, color: str, appears: int) -> Thing:
    radius = int(rng.integers(11, 18))
    panning = bool(pan.any())
    direction = "nowhere" if panning else str(rng.choice(list(DIRECTIONS)))
    low, high = radius, SIZE - 1 - radius
    distance = min(rng.uniform(42, 74), high - low)
    progress = np.clip((np.arange(frames) - appears) / max(1, frames - 1 - appears), 0, 1)
    path = np.empty((frames, 2))
    for axis, step in enumerate(DIRECTIONS[direction]):
        # Leave room for the way that it will go, or that the camera will.
        shift = pan[-1, axis]
        first, last = low + max(shift, 0), high + min(shift, 0)
        start = rng.uniform(first + distance * (step < 0), last - distance * (step > 0))
        path[:, axis] = start + step * distance * progress - pan[:, axis]
    return Thing(shape, color, radius, direction, path, appears, frames)


def _apart(things: list[Thing]) -> bool:
    for i, one in enumerate(things):
        for other in things[:i]:
            both = max(one.appears, other.appears)
            distance = np.linalg.norm(one.path[both:] - other.path[both:], axis=1)
            if distance.size and distance.min() < _MIN_DISTANCE:
                return False
    return True


def _letters(rng: np.random.Generator, frames: int, things: list[Thing]) -> list[Letter]:
    """A letter in most clips, where it hides no object."""
    if rng.random() >= 0.65:
        return []
    shown = int(rng.integers(max(1, frames // 4), frames + 1))
    start = int(rng.integers(0, frames - shown + 1))
    scale = 2 if rng.random() < 0.6 else 4
    name = str(rng.choice(list(LETTERS)))
    for _ in range(_TRIES):
        left, top = (int(n) * PATCH for n in rng.integers(0, GRID + 1 - scale // 2, 2))
        inset = int(rng.integers(3, 6)) * scale // 2, int(rng.integers(1, 4)) * scale // 2
        letter = Letter(name, start, start + shown, scale, left, top, inset)
        middle = np.array([left, top]) + letter.plate / 2
        if all(np.linalg.norm(thing.path - middle, axis=1).min() >= thing.radius + letter.plate / 2 for thing in things):
            return [letter]
    return []


def _flash(rng: np.random.Generator, frames: int, color: str) -> Flash:
    length = int(rng.integers(1, 3))
    start = int(rng.integers(frames - length + 1))
    x, y = rng.uniform(14, SIZE - 14, 2)
    return Flash(color, start, start + length, int(rng.integers(10, 14)), (float(x), float(y)))


def _bar(rng: np.random.Generator, frames: int) -> Bar:
    width = int(rng.integers(8, 15))
    start, stop = rng.uniform(0, SIZE - width, 2)
    return Bar(bool(rng.random() < 0.5), width, np.linspace(start, stop, frames), int(rng.integers(60, 150)))


def questions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """What can be asked about a scene, at most one or two of each kind; about a still one, nothing of time."""
    things, frames = scene.things, scene.frames
    asked = []
    for thing in things:
        if thing.changes is None:
            asked.append(Question("color", f"what color is the {thing.shape} ?", thing.color))
            asked.append(Question("shape", f"which shape is {thing.color} ?", thing.shape))
        else:
            asked.append(Question("change", f"what color does the {thing.shape} become ?", thing.later_color))
        if thing.vanishes < frames:
            asked.append(Question("vanish", "which shape vanishes ?", thing.shape))
        elif scene.camera == "nowhere" and frames - thing.appears >= max(3, frames // 2):
            asked.append(Question("direction", f"which way does the {thing.shape} move ?", thing.direction))
        when = str(rng.choice(["first", "last"]))
        position = thing.path[thing.appears if when == "first" else thing.vanishes - 1] - (SIZE - 1) / 2
        if min(abs(position)) >= _CLEAR:
            corner = CORNERS[int(np.sign(position[0])), int(np.sign(position[1]))]
            asked.append(Question("where", f"where is the {thing.shape} {when} ?", corner))
    if things:
        asked.append(Question("count", "how many objects are there ?", NUMBERS[len(things) - 1]))
    if len(things) > 1 and frames > 1:
        for when, thing in (("first", things[0]), ("last", things[-1])):
            if thing.changes is None and rng.random() < 0.5:
                asked.append(Question("order", f"which color appears {when} ?", thing.color))
            else:
                asked.append(Question("order", f"which shape appears {when} ?", thing.shape))
    asked += [Question("letter", "which letter is shown ?", letter.name) for letter in scene.letters]
    if scene.flash:
        asked.append(Question("flash", "what color is the flash ?", scene.flash.color))
    if frames > 1 and (scene.camera != "nowhere" or all(thing.direction == "nowhere" for thing in things)):
        asked.append(Question("camera", "which way does the camera move ?", scene.camera))
    return asked
