"""Pictures of a scene: Scene -> uint8 RGB [T, S, S, 3], and what each pixel shows.

Background, texture, clutter and noise come from the scene's own seed, so that no two clips share any. The labels are the ground
truth that the vision tower is warmed up on and that token norms are compared with: per pixel 0 for background, else 1 + the index of what
is seen (WHAT: shapes, star, letters) and 1 + that of its colour.

T frames of S x S pixels, S = SIZE.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from export.scenes.make import make_scene
from export.scenes.questions import Question, questions
from export.scenes.scene import COLORS, LETTERS, SHAPES, SIZE, Damage, Scene, still

WHAT = (*SHAPES, "star", *LETTERS)
_MARGIN = 56  # pixels of background beyond the picture, for the camera to pan into


@dataclass(frozen=True)
class DrawnClip:
    """frames uint8 RGB [T, S, S, 3], what can be asked about them, and the scene behind them."""

    frames: np.ndarray
    questions: list[Question]
    scene: Scene


def make_clip(rng: np.random.Generator, frames: int = 16) -> DrawnClip:
    """A scene with its pictures and questions; the same generator state gives the same clip."""
    scene = make_scene(rng, frames)
    return DrawnClip(draw(scene), questions(rng, scene), scene)


def make_still(rng: np.random.Generator) -> DrawnClip:
    """A clip of one frame that something can be asked about."""
    while True:
        scene = still(make_scene(rng, 4), int(rng.integers(4)))
        asked = questions(rng, scene)
        if asked:
            return DrawnClip(draw(scene), asked, scene)


def draw(scene: Scene) -> np.ndarray:
    """uint8 RGB [T, S, S, 3] of a scene."""
    return draw_with_labels(scene)[0]


def draw_with_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The pictures, and uint8 [T, S, S, 2]: what each pixel shows and in which colour, 0 for background."""
    rng = np.random.default_rng(scene.look)
    canvas = _background(rng)
    noise = rng.standard_normal((SIZE + 32, SIZE + 32, 3), dtype=np.float32) * scene.damage.noise
    images = np.empty((scene.frames, SIZE, SIZE, 3), np.float32)
    labels = np.zeros((scene.frames, SIZE, SIZE, 2), np.uint8)
    for t, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = np.rint(scene.pan[t]).astype(int) + _MARGIN
        image[:] = canvas[y : y + SIZE, x : x + SIZE]
        for thing in scene.things:
            if thing.appears <= t < thing.vanishes:
                _paint(image, label, thing.shape, thing.radius, thing.path[t], thing.color_at(t))
        if scene.bar:
            edge = int(scene.bar.edge[t])
            stripe = slice(edge, edge + scene.bar.width)
            where = (slice(None), stripe) if scene.bar.upright else (stripe,)
            image[where] = scene.bar.grey
            label[where] = 0
        for letter in scene.letters:
            if letter.start <= t < letter.stop:
                plate = slice(letter.top, letter.top + letter.plate), slice(letter.left, letter.left + letter.plate)
                glyph = _glyph(letter.name, letter.scale)
                left, top = letter.left + letter.inset[0], letter.top + letter.inset[1]
                image[plate] = 10
                image[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 250
                label[plate] = 1 + WHAT.index(letter.name), 0
        flash = scene.flash
        if flash and flash.start <= t < flash.stop:
            _paint(image, label, "star", flash.radius, np.array(flash.center), flash.color)
        dx, dy = rng.integers(0, 33, 2)
        image += noise[dy : dy + SIZE, dx : dx + SIZE]
    return _jpeg(np.clip(images, 0, 255).astype(np.uint8), scene.damage), labels


def _background(rng: np.random.Generator) -> np.ndarray:
    """A colour, a soft texture and grey clutter: float32 [S + 2 margins, same, 3]."""
    side = SIZE + 2 * _MARGIN
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = rng.uniform(30, 110) + rng.uniform(-12, 12, 3)
    coarse = rng.standard_normal((12, 12, 1)) * rng.uniform(0, 14)
    at = np.linspace(0, 10.999, side)
    low, part = at.astype(int), (at % 1)[:, None, None]
    rows = coarse[low] * (1 - part) + coarse[low + 1] * part
    part = part.transpose(1, 0, 2)
    canvas += rows[:, low] * (1 - part) + rows[:, low + 1] * part
    for _ in range(int(rng.integers(0, 25))):  # specks and strokes
        height, width = rng.integers(2, 8), rng.integers(2, 8)
        y, x = rng.integers(0, side - 8, 2)
        canvas[y : y + height, x : x + width] += rng.uniform(-40, 40)
    return canvas


def _paint(image: np.ndarray, label: np.ndarray, shape: str, radius: int, center: np.ndarray, color: str) -> None:
    """Cut off where it leaves the picture."""
    x, y = np.rint(center).astype(int) - radius
    mask = _mask(shape, radius)
    side = mask.shape[0]
    part = mask[max(0, -y) : max(0, SIZE - y), max(0, -x) : max(0, SIZE - x)]
    box = slice(max(0, y), max(0, y + side)), slice(max(0, x), max(0, x + side))
    image[box][part] = COLORS[color]
    label[box][part] = 1 + WHAT.index(shape), 1 + list(COLORS).index(color)


@lru_cache(maxsize=256)
def _mask(shape: str, radius: int) -> np.ndarray:
    """Which pixels of the square around its centre a shape covers: bool [2 radius + 1, same]."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        return (abs(x) <= 0.85 * radius) & (abs(y) <= 0.85 * radius)
    if shape == "triangle":
        return (y <= 0.8 * radius) & (abs(x) <= 0.55 * (y + radius))
    if shape == "cross":
        return (abs(x) <= 0.33 * radius) | (abs(y) <= 0.33 * radius)
    diamond = abs(x) + abs(y) <= 0.55 * radius
    rays = (abs(x) <= 0.12 * radius) | (abs(y) <= 0.12 * radius) | (abs(abs(x) - abs(y)) <= 0.15 * radius)
    return diamond | rays  # star


@lru_cache(maxsize=64)
def _glyph(letter: str, scale: int) -> np.ndarray:
    pixels = np.array([[pixel == "1" for pixel in row] for row in LETTERS[letter]])
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _jpeg(pictures: np.ndarray, damage: Damage) -> np.ndarray:
    if damage.jpeg is None:
        return pictures
    from PIL import Image

    damaged = np.empty_like(pictures)
    for picture, out in zip(pictures, damaged, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "jpeg", quality=damage.jpeg)
        out[:] = np.asarray(Image.open(file))
    return damaged
