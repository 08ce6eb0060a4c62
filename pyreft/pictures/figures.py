"""Figures of matplotlib, made without pyplot, which would keep each of them for the whole process.

This file is imported when a figure is drawn: matplotlib is needed for nothing else.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pyreft.pictures.colours import NONE, SCALE, colour_of, ink_on

try:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ticker import MaxNLocator as MaxNLocator
except ImportError as error:
    raise ImportError(
        "this figure is drawn with matplotlib, which is not installed: pip install matplotlib. "
        "The numbers, and the HTML of notebooks, need no matplotlib."
    ) from error

TEXT = 10
_MAX_INCHES = 60.0


class Picture(Figure):
    """A figure that notebooks show, also without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png")
        return image.getvalue()


def new_figure(width: float, height: float) -> Picture:
    """An empty figure of a size in inches."""
    size = (min(width, _MAX_INCHES), min(height, _MAX_INCHES))
    return Picture(figsize=size, dpi=100, layout="constrained")


@dataclass(frozen=True)
class Cells:
    """What a heat map shows, from top to bottom and from left to right.

    Args:
        values: The value of each cell; NaN for none.
        rows: The label of each row.
        columns: The label of each column.
        texts: The text in each cell; empty for none.
        highest: The end of the scale, which begins at 0.
        falling: Whether 0 has the darkest colour.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    texts: Sequence[Sequence[str]]
    highest: float
    falling: bool = False

    def fraction(self, value: float) -> float:
        """Where a value is on the scale of colours, in [0, 1]."""
        share = value / (self.highest or 1.0)
        return 1.0 - share if self.falling else share


def draw_cells(axes: Axes, cells: Cells) -> None:
    """Draw a heat map. Light grey cells have no value."""
    highest = cells.highest or 1.0
    shape = (len(cells.rows), len(cells.columns))
    values = [[math.nan if math.isnan(v) else min(v, highest) for v in row] for row in cells.values]
    axes.imshow(
        *(values, _colours(cells)), aspect="auto", interpolation="none", vmin=0.0, vmax=highest
    )
    for y, row in enumerate(cells.texts):
        for x, text in enumerate(row):
            if text:
                colour = ink_on(colour_of(cells.fraction(cells.values[y][x])))
                axes.text(
                    *(x, y, drawable(text)),
                    ha="center",
                    va="center",
                    fontsize=TEXT - 1,
                    color=colour,
                    parse_math=False,
                )
    axes.set_xticks(range(shape[1]), labels=list(map(drawable, cells.columns)), parse_math=False)
    axes.set_yticks(range(shape[0]), labels=list(map(drawable, cells.rows)), parse_math=False)
    axes.tick_params(labelsize=TEXT, length=0)
    # White lines between the cells.
    axes.set_xticks([x - 0.5 for x in range(1, shape[1])], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def draw_scale(figure: Figure, axes: Sequence[Axes], cells: Cells, title: str) -> None:
    """Draw the scale of a heat map to the right of axes."""
    scale = ScalarMappable(Normalize(0.0, cells.highest or 1.0), _colours(cells))
    # At the top, because the figure of a long prompt is much higher than the scale.
    bar = figure.colorbar(
        scale, ax=list(axes), pad=0.02, aspect=30, fraction=0.05, anchor=(0.0, 1.0)
    )
    bar.set_label(title, fontsize=TEXT)
    if cells.falling:
        bar.set_ticks([n * cells.highest / 3 for n in range(4)])
    bar.ax.tick_params(labelsize=TEXT - 1)
    bar.outline.set_visible(False)


def _colours(cells: Cells) -> Colormap:
    listed = SCALE[::-1] if cells.falling else SCALE
    return LinearSegmentedColormap.from_list("pyreft", listed).with_extremes(bad=NONE)


def drawable(text: str) -> str:
    """A text with "U+1F41F" in place of each character that no font of the figure has."""
    if text.isascii():
        return text
    fonts = [get_font(path) for path in _font_files()]
    has = (c == "\n" or any(font.get_char_index(ord(c)) for font in fonts) for c in text)
    return "".join(c if there else f"U+{ord(c):04X}" for c, there in zip(text, has, strict=True))


def _font_files() -> list[str]:
    """The font that matplotlib draws text with, and those it falls back on."""
    families = FontProperties().get_family()
    return [str(findfont(FontProperties(family=[family]))) for family in families]
