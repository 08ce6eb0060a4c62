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

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


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
