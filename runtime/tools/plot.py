"""A picture of what compression does to one clip: `plot(bundle, video, out)` writes a PNG.

For each sampled frame, one above the other
    the frame             as the model sees it, with its time
    token norms           the norm of every token just before compression, laid over the frame
    NSP weights           each token's share of its window's softmax; 1 / window² everywhere would be plain average pooling
A coloured border marks a frame that Pyramid Temporal Gridding replaces by a summary, one colour a level (the last to write).
A spec without NSP has no third row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import missing_package
from runtime.core.files import atomic_file
from runtime.engine import EngineOptions
from runtime.tools.picture import Picture, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8  # frames side by side
_LEVEL_COLORS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito: distinguishable by colour-blind readers
_INK, _PALE = "#1b1f24", "#6b7280"


def plot(bundle: Bundle, video: str | Path, out: str | Path, options: EngineOptions = EngineOptions()) -> Picture:
    """Write the PNG `out` and return what it shows. UserError for a video that can't be read or a missing package."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise missing_package("matplotlib", "drawing a plot", "plot") from None
    picture = look(bundle, video, options)
    figure = draw(picture)
    with atomic_file(Path(out)) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")
    return picture


def draw(picture: Picture) -> Figure:
    """The figure: blocks of up to 8 frames, each block with its rows; scales and legend at the foot."""
    from matplotlib.figure import Figure

    frames = len(picture.norms)
    columns = min(frames, COLUMNS)
    blocks = -(-frames // columns)
    kinds = ["frame", "norms"] + (["weights"] if picture.weights is not None else [])
    cell, label, gap, block_gap, head, foot = 1.22, 1.15, 0.06, 0.34, 1.12, 0.95  # inches
    height_of = cell * picture.clip.frames.shape[1] / picture.clip.frames.shape[2]
    block = len(kinds) * (height_of + gap) + block_gap
    width, height = max(label + columns * (cell + gap) + 0.25, 8.8), head + blocks * block + foot
    left = label + (width - label - 0.25 - columns * (cell + gap)) / 2
    figure = Figure(figsize=(width, height))
    scales = _scales(picture)

    _text(figure, 0.3, height - 0.42, picture.title, size=17, weight="bold")
    _text(figure, 0.3, height - 0.70, picture.subtitle, size=9, color=_PALE)
    _text(figure, 0.3, height - 0.90, picture.spec, size=8.5, color=_PALE, family="monospace")
    for frame in range(frames):
        top = height - head - (frame // columns) * block
        x = left + (frame % columns) * (cell + gap)
        for row, kind in enumerate(kinds):
            y = top - 0.2 - (row + 1) * height_of - row * gap
            axes = figure.add_axes((x / width, y / height, cell / width, height_of / height))
            _cell(axes, picture, frame, kind, scales)
        time = picture.clip.timestamps[frame]
        written = picture.levels.get(frame)
        style: dict[str, Any] = {"color": _color(written[-1]), "weight": "bold"} if written else {"color": _PALE}
        _text(figure, x + cell / 2, top - 0.14, f"{time:.2f} s", size=8, align="center", **style)
    for number in range(blocks):
        for row, name in enumerate(["frame", "token norms", "NSP weights"][: len(kinds)]):
            y = height - head - number * block - 0.2 - (row + 0.5) * height_of - row * gap
            _text(figure, left - 0.14, y, name, size=9, align="right", middle=True)
    _foot(figure, picture, scales, (width, height))
    return figure


def _scales(picture: Picture) -> dict[str, dict[str, Any]]:
    """Colour maps and limits shared by all frames: a frame's heat can be compared with another's."""
    scales = {"norms": {"cmap": "inferno", "vmin": float(picture.norms.min()), "vmax": float(np.quantile(picture.norms, 0.995))}}
    if picture.weights is not None:
        scales["weights"] = {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}
    return scales


def _cell(axes: Any, picture: Picture, frame: int, kind: str, scales: Mapping[str, dict[str, Any]]) -> None:
    image = picture.clip.frames[frame]
    extent = (0, image.shape[1], image.shape[0], 0)
    axes.set_xticks([])
    axes.set_yticks([])
    if kind == "frame":
        axes.imshow(image, extent=extent)
    elif kind == "norms":
        grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.imshow(picture.norms[frame], extent=extent, alpha=0.85, interpolation="nearest", **scales["norms"])
    else:
        assert picture.weights is not None
        axes.set_facecolor("#e5e7eb")  # shows where no window reaches
        axes.imshow(picture.weights[frame], extent=extent, interpolation="nearest", **scales["weights"])
        rows, columns = picture.weights.shape[1:]
        for count, length, line in ((rows, image.shape[0], axes.axhline), (columns, image.shape[1], axes.axvline)):
            for at in range(picture.window, count, picture.window):
                line(at * length / count, color="white", linewidth=min(0.5, 4 / count))
    written = picture.levels.get(frame)
    for spine in axes.spines.values():
        spine.set_visible(bool(written))
        spine.set_color(_color(written[-1]) if written else "none")
        spine.set_linewidth(3)


def _foot(figure: Figure, picture: Picture, scales: Mapping[str, dict[str, Any]], size: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    width, height = size
    x = 0.3
    titles = {"norms": "norm of a token before compression", "weights": f"weight in its {picture.window}×{picture.window} window"}
    for kind, scale in scales.items():
        axes = figure.add_axes((x / width, 0.42 / height, 2.1 / width, 0.13 / height))
        mappable = ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
        bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        if kind == "weights":
            even = 1 / picture.window**2
            bar.set_ticks([0, even, 1], labels=["0", f"{even:.2g} = average", "1"])
        axes.tick_params(labelsize=7.5, length=2, colors=_PALE)
        _text(figure, x, 0.63, titles[kind], size=8.5)
        x += 2.55
    shown = sorted({written[-1] for written in picture.levels.values()})
    if shown:
        _text(figure, x, 0.63, "replaced by a PTG summary, written last by", size=8.5)
    for level in shown:
        figure.add_artist(
            Rectangle((x / width, 0.40 / height), 0.16 / width, 0.15 / height, fill=False, edgecolor=_color(level), linewidth=2.5)
        )
        count = sum(written[-1] == level for written in picture.levels.values())
        x = _text(figure, x + 0.26, 0.43, f"level {level}: {count} frame{'s' * (count > 1)}", size=8.5) + 0.25


def _text(figure: Figure, x: float, y: float, text: str, align: str = "left", middle: bool = False, **style: Any) -> float:
    """Text at (x, y) inches from the lower left; returns about where it ends. style: of matplotlib's Text."""
    width, height = figure.get_size_inches()
    style = {"color": _INK, "ha": align, "va": "center" if middle else "baseline"} | style
    figure.text(x / width, y / height, text, **style)
    return x + len(text) * style["size"] * 0.56 / 72


def _color(level: int) -> str:
    return _LEVEL_COLORS[(level - 1) % len(_LEVEL_COLORS)]
