"""One intervention on a base model, and the hidden state that it edits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyreft.base_model.components import Component
from pyreft.config import InterventionConfig
from pyreft.positions import PositionSpec


@dataclass(frozen=True)
class Target:
    """Where an intervention edits.

    Args:
        config: The intervention.
        component: Where its hidden state is in the base model.
        site: Equal for all that edit the same hidden state.
    """

    config: InterventionConfig
    component: Component
    site: int

    @property
    def positions(self) -> PositionSpec | None:
        """The tokens it edits, None if they come with the batch."""
        return self.config.positions

    @property
    def stack(self) -> str | None:
        """ "encoder" or "decoder", in a model with both: the tokens are those of that."""
        return self.component.stack

    def at(self, positions: PositionSpec) -> Target:
        """The same intervention on these tokens."""
        return replace(self, config=replace(self.config, positions=positions))
