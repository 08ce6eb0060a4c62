"""The word of position specs for patches of a picture, by their lines and columns.

rows0-3             the first four lines of patches, both ends included
columns2            the third column
rows0-3xcolumns2-5  what is in both, a box
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from pyreft.positions.spans import Ends
from pyreft.positions.tokens import Tokens
from pyreft.positions.words import Word, read_index

_RANGE = "([0-9]+)(?:-([0-9]+))?"
_BOX = re.compile(f"(?:rows{_RANGE})?(x)?(?:columns{_RANGE})?")


@dataclass(frozen=True)
class Box(Word):
    """A box of patches.

    Args:
        rows, columns: The first and the last line and column of it, None for all.
    """

    rows: tuple[int, int] | None
    columns: tuple[int, int] | None

    syntax, several = "rows<a>-<b>xcolumns<c>-<d>", True
    meaning = "a box of patches; or only rows<a>-<b>, or columns<c>"

    @classmethod
    def parse(cls, text: str) -> Word | None:
        if not text or not (match := _BOX.fullmatch(text)):
            return None
        top, bottom, cross, left, right = match.groups()
        if (cross is not None) != (top is not None and left is not None):
            return None
        return cls(_range(top, bottom), _range(left, right))

    def __str__(self) -> str:
        named = (("rows", self.rows), ("columns", self.columns))
        return "x".join(f"{name}{_written(*ends)}" for name, ends in named if ends is not None)

    def only(self) -> str:
        return "patch"

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        patches = tokens.of_kind("patch").prompt
        height, width = _grid(patches, tokens.picture)
        (top, bottom), (left, right) = self.rows or (0, height - 1), self.columns or (0, width - 1)
        if bottom >= height or right >= width:
            raise ValueError(
                f"{str(self)!r} is outside the grid of patches, which has {height} rows and "
                f"{width} columns, counted from 0."
            )
        box = torch.zeros(height, width, dtype=torch.bool, device=patches.device)
        box[top : bottom + 1, left : right + 1] = True
        found = torch.zeros_like(patches)
        found[patches] = box.flatten().repeat(len(patches))
        return found


def _grid(patches: Tensor, picture: tuple[int, int] | None) -> tuple[int, int]:
    """The number of lines and columns of patches (B, T) of a picture."""
    counts = patches.sum(1)
    count = int(counts[0])
    grids = [(lines, count // lines) for lines in range(1, count + 1) if count % lines == 0]
    fitting = [grid for grid in grids if picture is not None and _fits(grid, picture)]
    if len(fitting) != 1 or bool((counts != count).any()):
        raise ValueError(
            f"the {count} patches of a picture are in no grid that is known here: name them by "
            'their indices, as in "patch:f7" or "patch:3".'
        )
    return fitting[0]


def _fits(grid: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether patches of some size are in this grid, if rests are left out, or filled up."""
    pairs = list(zip(picture, grid, strict=True))
    # The sizes of a patch with which each axis has as many.
    exact = [size / count for size, count in pairs]
    one_more = [size / (count + 1) for size, count in pairs]
    one_less = [size / (count - 1) if count > 1 else math.inf for size, count in pairs]
    return max(one_more) < min(exact) or max(exact) < min(one_less)


def _range(first: str | None, last: str | None) -> tuple[int, int] | None:
    if first is None:
        return None
    ends = read_index(int(first)), read_index(int(first if last is None else last))
    if ends[0] > ends[1]:
        raise ValueError("selects nothing")
    return ends


def _written(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
