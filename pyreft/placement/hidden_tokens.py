"""Tokens that only the hidden state shows -> which of them each intervention edits.

ViT      pixel_values (B, C, H, W)     block_output (B, 197, D)       a class token and the patches
wav2vec2 input_values (B, samples)     block_output (B, frames, D)    some of them padding
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyreft.base_model.towers import TOWER
from pyreft.placement.placement import Directions, Placement, place
from pyreft.placement.targets import Target
from pyreft.positions import Tokens


@dataclass(frozen=True)
class HiddenTokens:
    """Interventions on tokens that no argument of a call counts: patches, frames.

    They are placed when the hidden state is there, and shows how many tokens it has.

    Args:
        targets: All targets of the adapter; those in a tower are placed.
        explicit: (b, I, P) positions that override those of the interventions.
        subspaces: For an intervention, the directions to edit for each row.
        in_order: As for `place`.
        rows: (b,), the rows of the batch that are edited, or None for all.
        batch: B, the number of rows, if only some are edited.
    """

    targets: Sequence[Target]
    explicit: Tensor | None = None
    subspaces: Mapping[int, Directions] = field(default_factory=dict)
    in_order: bool = False
    rows: Tensor | None = None
    batch: int | None = None

    def place(
        self, site: int, text: Tensor, picture: tuple[int, int] | None = None
    ) -> Placement | None:
        """Place the interventions of one site.

        Args:
            site: The site.
            text: (B, T) bool, the tokens of its hidden state that are not padding.
            picture: The height and the width of the picture that its patches are of, if known.

        Raises:
            ValueError: As for `place`; or if rows were named, and the hidden state has others.
        """
        if self.batch is not None and self.batch != len(text):
            raise ValueError(
                f"adapter_names has {self.batch} names, and the hidden state has {len(text)} rows: "
                "this part of the model reads another number of pictures or sounds than the batch "
                "has rows, so a name cannot be found for each."
            )
        rows = None if self.rows is None else self.rows.to(text.device)
        here = text if rows is None else text[rows]
        explicit = self.explicit
        if explicit is not None and 0 < len(explicit) < len(here):
            # Once for each beam.
            explicit = explicit.repeat_interleave(len(here) // len(explicit), dim=0)
        seen = Tokens(here, torch.zeros_like(here), picture=picture)
        tokens: dict[str | None, Tokens] = {TOWER: seen}
        placed = place(self.targets, tokens, explicit, self.subspaces, self.in_order, site)
        return placed if placed is None or rows is None else placed.in_rows(rows, len(text))
