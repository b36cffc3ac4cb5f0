"""Draw what happens in a clip from a random generator: the same state gives the same scene.

T frames of S x S pixels, S = SIZE.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.scenes.scene import COLORS, DIRECTIONS, GRID, LETTERS, PATCH, SHAPES, SIZE, Bar, Damage, Flash, Letter, Scene, Thing

_MIN_DISTANCE = 26  # pixels between the centres of two objects, at any time: they may overlap at their edges
_TRIES = 60


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
    changes = rng.random() < 0.45
    if changes or count > 1:
        chosen = int(rng.integers(count))
        thing = things[chosen]
        seen = frames - thing.appears
        if seen >= 4:
            least, low, high = (1, 0.35, 0.65) if changes else (2, 0.4, 0.8)
            at = thing.appears + int(rng.integers(max(least, int(seen * low)), max(2, int(seen * high)) + 1))
            things[chosen] = replace(thing, later_color=later_color, changes=at) if changes else replace(thing, vanishes=at)
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
