"""The vision tower's warm-up: single crowded pictures, and for each patch what it shows and in which colour.

It stands in for the tower's pre-training against text: without it the shapes stay at chance for a long time. What is left of it afterwards
is the tower, the projector and the words' embeddings.

B pictures, S x S pixels, M = GRID * GRID patches, D hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from export.demo.tiny import VOCABULARY
from export.scenes.draw import WHAT, draw_with_labels
from export.scenes.make import draw_damage
from export.scenes.scene import COLORS, CORNERS, GRID, LETTERS, PATCH, SHAPES, SIZE, Flash, Letter, Scene, Thing

_COVERED = 24  # pixels of a patch from which on it shows a thing


def crowded(rng: np.random.Generator) -> Scene:
    """One picture with up to nine objects, two letters and often a star."""
    dense, (dx, dy) = rng.uniform(0.35, 0.9), rng.uniform(-12, 12, 2)
    things = []
    for n in range(9):
        if rng.random() < dense:
            radius = int(rng.integers(11, 18))
            center = np.array([21 + 42 * (n % 3) + dx, 21 + 42 * (n // 3) + dy]) + rng.uniform(-5, 5, 2)
            center = np.clip(center, radius, SIZE - 1 - radius)
            things.append(Thing(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), radius, "nowhere", center[None], 0, 1))
    letters = []
    for scale in (2, 4):
        left, top = (int(n) * PATCH for n in rng.integers(0, GRID + 1 - scale // 2, 2))
        inset = int(rng.integers(3, 6)) * scale // 2, int(rng.integers(1, 4)) * scale // 2
        letters.append(Letter(str(rng.choice(list(LETTERS))), 0, 1, scale, left, top, inset))
    x, y = rng.uniform(14, SIZE - 14, 2)
    star = Flash(str(rng.choice(list(COLORS))), 0, 1, int(rng.integers(10, 14)), (x, y)) if rng.random() < 0.7 else None
    return Scene(1, things, letters, star, None, "nowhere", np.zeros((1, 2)), draw_damage(rng), int(rng.integers(2**63)))


def pictures(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 RGB [B, 1, S, S, 3], and int64 [B, M, 2]: the thing and the colour that each patch shows most of, 0 for neither."""
    images, labels = zip(*(draw_with_labels(crowded(rng)) for _ in range(count)), strict=True)
    pixels = np.concatenate(labels).reshape(count, GRID, PATCH, GRID, PATCH, 2)
    cells = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(count, GRID * GRID, PATCH * PATCH, 2)
    shown = np.stack([_most(cells[..., 0], len(WHAT)), _most(cells[..., 1], len(COLORS))], axis=-1)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(shown)


def _most(cells: np.ndarray, classes: int) -> np.ndarray:
    """The class 1 … classes that covers most of each cell, 0 where none covers enough: [B, M, pixels] -> [B, M]."""
    covered = np.stack([(cells == n).sum(-1) for n in range(classes + 1)], axis=-1)
    covered[..., 0] = _COVERED
    return covered.argmax(-1)


class Heads(nn.Module):
    """Readings of the projected tokens: what and which colour a patch shows, which corner it is in, its row and column, and what is
    in a window of patches. Things, colours and corners are read with the LLM's embeddings of their words, so that tokens and
    words end in one space; with less than a full grid of tokens the LLM has no other way to know a place."""

    def __init__(self, hidden: int):
        super().__init__()
        self.background = nn.Linear(hidden, 2)
        self.window = nn.Linear(hidden, len(WHAT) + len(COLORS))
        self.place = nn.Linear(hidden, 2 * GRID)
        self.what_words = torch.tensor([VOCABULARY.index("flash" if name == "star" else name) for name in WHAT])
        self.color_words = torch.tensor([VOCABULARY.index(name) for name in COLORS])
        self.corner_words = torch.tensor([VOCABULARY.index(name) for name in CORNERS.values()])
        middle = GRID // 2
        where = [(int(np.sign(x - middle)), int(np.sign(y - middle))) for y in range(GRID) for x in range(GRID)]
        self.corner = torch.tensor([list(CORNERS).index(at) if at in CORNERS else -100 for at in where])

    def forward(self, tokens: torch.Tensor, shown: torch.Tensor, window: int, words: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(loss, share of the patches that show something which are read right) of tokens [B, GRID, GRID, D] and word embeddings [V, D]."""
        what, color = shown[..., 0].flatten(), shown[..., 1].flatten()
        flat = tokens.flatten(0, 2)
        no_thing, no_color = self.background(flat).split(1, dim=-1)
        seen = torch.cat([no_thing, flat @ words[self.what_words].T], dim=-1)
        balance = torch.ones(1 + len(WHAT)).index_fill(0, torch.tensor([0]), 0.3)
        loss = functional.cross_entropy(seen, what, balance)
        loss = loss + 0.5 * functional.cross_entropy(torch.cat([no_color, flat @ words[self.color_words].T], dim=-1), color)
        corners = self.corner.repeat(len(tokens))
        loss = loss + 0.1 * functional.cross_entropy(flat @ words[self.corner_words].T, corners)
        row, column = self.place(flat).split(GRID, dim=-1)
        along = torch.arange(GRID).expand(tokens.shape[:3])
        loss = loss + 0.1 * functional.cross_entropy(column, along.flatten())
        loss = loss + 0.1 * functional.cross_entropy(row, along.transpose(1, 2).flatten())
        return loss + self._windows(tokens, shown, window), (seen.argmax(-1) == what)[what > 0].float().mean().item()

    def _windows(self, tokens: torch.Tensor, shown: torch.Tensor, window: int) -> torch.Tensor:
        rows = GRID // window
        pooled = functional.avg_pool2d(tokens.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
        classes = torch.cat(
            [functional.one_hot(shown[..., k], n + 1)[..., 1:] for k, n in ((0, len(WHAT)), (1, len(COLORS)))], dim=-1
        ).float()
        grid = classes.unflatten(1, (GRID, GRID))[:, : rows * window, : rows * window]
        inside = grid.unflatten(2, (rows, window)).unflatten(1, (rows, window)).amax((2, 4))
        weight = torch.full((classes.shape[-1],), 3.0)
        return functional.binary_cross_entropy_with_logits(self.window(pooled), inside, pos_weight=weight)
