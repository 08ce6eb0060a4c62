"""The prompt and the completion of every row of a batch, in which positions are counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

# In a tensor of explicit positions: no token. The value that labels use for "no label".
NO_POSITION = -100


@dataclass(frozen=True)
class Tokens:
    """Masks of the prompt and the completion of every row of a padded batch.

    Args:
        prompt: (B, T) bool, true on the tokens of the prompt.
        completion: (B, T) bool, true on the tokens after it. Padding is false in both.
        input_ids: (B, T) token ids, or None if the batch came as embeddings.
    """

    prompt: Tensor
    completion: Tensor
    input_ids: Tensor | None = None

    def of(self, rows: Tensor) -> Tokens:
        """Some rows of the batch alone.

        Args:
            rows: (b,) int64, their indices.
        """
        ids = None if self.input_ids is None else self.input_ids[rows]
        return Tokens(self.prompt[rows], self.completion[rows], ids)

    @cached_property
    def text(self) -> Tensor:
        """(B, T) bool, true on every token that is not padding."""
        return self.prompt | self.completion

    @cached_property
    def index(self) -> Tensor:
        """(B, T) int64, the index of each token in its own sequence, padding not counted."""
        return self.text.long().cumsum(1) - 1

    @cached_property
    def prompt_length(self) -> Tensor:
        """(B, 1) int64, the number of prompt tokens of each row."""
        return self.prompt.sum(1, keepdim=True)
