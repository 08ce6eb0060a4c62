"""Which axes of a hidden state are its rows, its tokens and its features.

text, patches, frames     (B, T, D)
XLNet                     (T, B, D)
SqueezeBERT               (B, D, T)
convolutions              (B, D, H, W)        H * W tokens, one line of the picture after another
several streams           (B, T, S, D)        DeepSeek-V4; Gemma 3n has (S, B, T, D)
streams in a row          (B, S * T, D)       ProphetNet, one for each token that it predicts
tokens before or after    (B, N + T, D)       CPM-Ant begins with a prompt of its own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Layout:
    """The axes of a hidden state.

    Args:
        rows: The axis of the rows of the batch.
        tokens: The axes of the tokens, in the order in which they are counted.
        width: The axis of the features.
        streams: The axis of the streams, if each token has several hidden states; a token is edited
            in all of them.
        offset: The number of tokens before those of the call, which the model adds; it may add
            others after them. None if it adds none.
        copies: The number of streams, if those of all tokens follow each other along their axis.
    """

    rows: int = 0
    tokens: tuple[int, ...] = (1,)
    width: int = 2
    streams: int | None = None
    offset: int | None = None
    copies: int = 1

    def describe(self) -> str:
        """Such as "(B, D, H, W)": B rows, T tokens or H lines of W, D features, S streams."""
        tokens = ["T" if self.copies == 1 else "S * T"] if len(self.tokens) == 1 else "HW"
        named = {self.rows: "B", self.width: "D", **dict(zip(self.tokens, tokens, strict=True))}
        if self.streams is not None:
            named[self.streams] = "S"
        return f"({', '.join(named[axis] for axis in sorted(named))})"

    def views(self, hidden: Tensor) -> Iterator[Tensor]:
        """The hidden state as views (B, T, D), or (B, H, W, D): one for each stream."""
        if self.copies > 1:
            count = hidden.shape[1] // self.copies
            yield from (hidden[:, i * count : (i + 1) * count] for i in range(self.copies))
            return
        if self.streams is None:
            yield hidden.permute(self.rows, *self.tokens, self.width)
            return
        for index in range(hidden.shape[self.streams]):
            yield hidden.select(self.streams, index)


ROWS_FIRST = Layout()


def flat_rows(view: Tensor) -> Tensor:
    """(B, T, D) or (B, H, W, D) -> (B, T, D)."""
    return view.reshape(view.shape[0], -1, view.shape[-1])


def layout_of_text(
    shape: Sequence[int], rows: int, count: int, offset: int | None, copies: int = 1
) -> Layout | None:
    """The layout of a hidden state of text, from its shape in a forward pass.

    Args:
        shape: The shape.
        rows: B, the number of rows in that pass; no other size of it may be taken for it.
        count: T, the number of tokens in that pass, likewise.
        offset: The index of the first of these tokens, if the hidden state has more.
        copies: The number of streams that may follow each other.

    Returns:
        The layout, or None if the shape does not show one.
    """
    found = tuple(shape)
    if copies > 1 and len(found) == 3 and found[:2] == (rows, copies * count):
        return Layout(copies=copies)
    if found[:2] == (rows, count):
        return {3: ROWS_FIRST, 4: Layout(0, (1,), 3, streams=2)}.get(len(found))
    if len(found) == 3 and found[:2] == (count, rows):
        return Layout(1, (0,), 2)
    if len(found) == 3 and found[0] == rows and found[2] == count and offset is None:
        return Layout(0, (2,), 1)
    if len(found) == 4 and found[1:3] == (rows, count):
        return Layout(1, (2,), 3, streams=0)
    if len(found) == 3 and found[0] == rows and offset is not None:
        return Layout(offset=offset)
    return None


def layout_of(shape: Sequence[int], rows: int, module: nn.Module) -> Layout | None:
    """The layout of a hidden state of no text, from its shape in a forward pass.

    Args:
        shape: The shape.
        rows: B, the number of rows in that pass; no other size of it may be taken for it.
        module: The module that reads or returns it.

    Returns:
        The layout, or None if the shape does not show one.
    """
    if len(shape) == 3 and shape[0] == rows:
        return Layout(0, (2,), 1) if _features_come_first(shape, module) else ROWS_FIRST
    if len(shape) == 3 and shape[1] == rows:
        return Layout(1, (0,), 2)
    if len(shape) == 4 and shape[0] == rows:
        # The picture of the pass is a square.
        if shape[1] == shape[2] != shape[3]:
            return Layout(0, (1, 2), 3)
        if shape[2] == shape[3] != shape[1] or _features_come_first(shape, module):
            return Layout(0, (2, 3), 1)
        return Layout(0, (1, 2), 3)
    return None


def _features_come_first(shape: Sequence[int], module: nn.Module) -> bool:
    """Whether the second axis is that of the features, as convolutions have it."""
    leaves = [one for one in module.modules() if not list(one.children())]
    widths = {w for one in leaves for w in _widths(one)}
    if (shape[1] in widths) != (shape[-1] in widths):
        return shape[1] in widths
    return bool(leaves) and isinstance(leaves[-1], _CONVOLUTIONS)


def _widths(leaf: nn.Module) -> list[int]:
    names = ("out_features", "out_channels", "num_features", "num_channels", "normalized_shape")
    found = (getattr(leaf, name, None) for name in names)
    return [size[-1] if isinstance(size, tuple) else size for size in found if size]
