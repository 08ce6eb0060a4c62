"""The prompt and the completion of every row of a batch, in which positions are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

# In a tensor of explicit positions: no token. The value that labels use for "no label".
NO_POSITION = -100


@dataclass(frozen=True)
class Kinds:
    """How the kinds of tokens of a hidden state are found; at most one of the two ways.

    Args:
        ids: Kind -> the id of its tokens in a text, such as "image"; all others are "text".
        columns: Kind -> where its tokens stand, such as "class" and "patch" of a picture.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, slice] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds that there are."""
        return tuple(self.columns) or ("text", *self.ids)


@dataclass(frozen=True)
class Tokens:
    """Masks of the prompt and the completion of every row of a padded batch.

    Args:
        prompt: (B, T) bool, true on the tokens of the prompt.
        completion: (B, T) bool, true on the tokens after it. Padding is false in both.
        input_ids: (B, T) token ids, or None if the batch came as embeddings.
        kinds: The kinds of its tokens.
        picture: The height and the width of the picture that patches are of, in any unit; None if
            they are of none, or if it is not known.
        name: What the prompt is called in errors.
    """

    prompt: Tensor
    completion: Tensor
    input_ids: Tensor | None = None
    kinds: Kinds = field(default_factory=Kinds)
    picture: tuple[int, int] | None = None
    name: str = "the prompt"

    def of(self, rows: Tensor) -> Tokens:
        """Some rows of the batch alone.

        Args:
            rows: (b,) int64, their indices.
        """
        ids = None if self.input_ids is None else self.input_ids[rows]
        return replace(
            self, prompt=self.prompt[rows], completion=self.completion[rows], input_ids=ids
        )

    def of_kind(self, kind: str) -> Tokens:
        """The batch with the prompt tokens of one kind alone.

        Args:
            kind: One of `kinds`.

        Raises:
            ValueError: If there is no such kind, or the batch came as embeddings.
        """
        if kind not in self.kinds.names:
            raise ValueError(
                f"there are no {kind} tokens: there are {', '.join(self.kinds.names)} tokens."
            )
        if kind in self.kinds.columns:
            here = torch.zeros_like(self.prompt)
            here[:, self.kinds.columns[kind]] = True
        elif not self.kinds.ids:
            here = torch.ones_like(self.prompt)
        elif self.input_ids is None:
            raise ValueError(
                f"{kind} tokens are found by their id, and the batch has no input_ids: give them, "
                "or explicit intervention_locations."
            )
        else:
            ids = {kind: self.kinds.ids[kind]} if kind != "text" else self.kinds.ids
            known = torch.tensor(list(ids.values()), device=self.input_ids.device)
            here = torch.isin(self.input_ids, known) ^ (kind == "text")
        return replace(self, prompt=self.prompt & here, name=f"the {kind} tokens of {self.name}")

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
