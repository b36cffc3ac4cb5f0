"""What happens in a generated clip: plain numbers, of which `make` draws some and `draw` makes pictures.

T frames of S x S pixels, S = SIZE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
SPLITS = ("train", "validation", "test")
MIN_FRAMES = 8


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


def clip_rng(split: str, seed: int, *index: int) -> np.random.Generator:
    """The generator of one clip: equal arguments give equal clips, and no two splits or indices share a stream."""
    return np.random.default_rng(np.random.SeedSequence((seed, *index), spawn_key=(SPLITS.index(split),)))


def still(scene: Scene, frame: int) -> Scene:
    """One frame of a scene as a scene by itself: what is visible in it, in the colours of that moment."""
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
