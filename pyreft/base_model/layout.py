"""Which axes of a hidden state are its rows, its tokens and its features.

text, patches, frames     (B, T, D)
XLNet                     (T, B, D)
convolutions              (B, D, H, W)    the H * W tokens, one line of the picture after the other
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    rows: int = 0
    tokens: tuple[int, ...] = (1,)
    width: int = 2

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes, rows first and features last."""
        return (self.rows, *self.tokens, self.width)

    def to_rows(self, hidden: Tensor) -> Tensor:
        """The hidden state as (B, T, D)."""
        moved = hidden.permute(self.axes)
        return moved.reshape(moved.shape[0], -1, moved.shape[-1])

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """(B, T, D) in this layout again, in the shape of the hidden state that it came from."""
        moved = rows.reshape([like.shape[axis] for axis in self.axes])
        order = sorted(range(len(self.axes)), key=lambda index: self.axes[index])
        return moved.permute(order)


ROWS_FIRST = Layout()


def layout_of(shape: Sequence[int], rows: int, module: nn.Module) -> Layout | None:
    """The layout of a hidden state, from its shape in a forward pass.

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
