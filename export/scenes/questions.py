"""What can be asked about a scene, with the answers.

Each kind of question needs something else to survive compression: `flash` one frame, `letter` one patch, `direction`, `camera` and
`where` positions, `order`, `change` and `vanish` the way things follow each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from export.scenes.scene import COLORS, CORNERS, DIRECTIONS, LETTERS, NUMBERS, SHAPES, SIZE, Scene

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
_CLEAR = 14  # pixels from the middle of the picture from which on a corner is named


class Question(NamedTuple):
    """`kind` is one of KINDS; `answer` is one word."""

    kind: str
    question: str
    answer: str


def choices(question: Question) -> tuple[str, ...]:
    """The answers that a question of this wording can have."""
    if question.kind != "order":
        return KINDS[question.kind]
    return SHAPES if question.question.startswith("which shape") else tuple(COLORS)


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
