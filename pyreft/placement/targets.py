"""An intervention, and the hidden state that it edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pyreft.base_model.components import Component
from pyreft.base_model.towers import TOWER
from pyreft.config import InterventionConfig, require_disjoint
from pyreft.positions import PositionSpec

# The stacks that have no completion -> what they are, for errors.
_WITHOUT_COMPLETION = {
    "encoder": "in the encoder, which reads the prompt",
    TOWER: "in a part of the model that reads pictures or sound",
}


@dataclass(frozen=True)
class Target:
    """An intervention and the hidden state that it edits.

    Args:
        config: The intervention.
        component: The module and side of its hidden state in the base model.
        site: Equal for all targets that edit the same hidden state.
    """

    config: InterventionConfig
    component: Component
    site: int

    @cached_property
    def positions(self) -> PositionSpec | None:
        """The tokens it edits, None if the batch specifies them."""
        return self.config.positions

    def at(self, positions: PositionSpec) -> Target:
        """The same target at these positions."""
        return replace(self, config=replace(self.config, positions=positions))


def require_positions(targets: Sequence[Target]) -> None:
    """Refuse positions that overlap, or that no batch has.

    Raises:
        ValueError: If two specs at one site share a token in every long prompt, a spec for an
            encoder selects a completion, or a spec names a kind of tokens that is not there.
    """
    require_disjoint([target.config for target in targets], [target.site for target in targets])
    for target in targets:
        if (spec := target.positions) is None:
            continue
        kinds, stack = target.component.kinds, target.component.stack
        if missing := sorted(kind for kind in spec.kinds if kind not in kinds.names):
            raise ValueError(
                f"{target.config.place} has no {' and no '.join(missing)} tokens for {spec!r}, but "
                f"{', '.join(kinds.names)} tokens."
            )
        if stack in _WITHOUT_COMPLETION and spec.edits_completion and not spec.edits_all:
            raise ValueError(
                f"{target.config.place} is {_WITHOUT_COMPLETION[stack]} and no "
                f"completion, so {spec!r} selects no token: the completion is in the decoder, as "
                'in "decoder_block_output".'
            )
