"""On one layer the positions of interventions are disjoint (Wu et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyreft.config.intervention import InterventionConfig


def require_disjoint(resolved: Sequence[InterventionConfig], sites: Sequence[Any]) -> None:
    """Refuse positions that meet.

    Args:
        resolved: The interventions.
        sites: What tells where each acts; those that edit the same hidden state have the same.

    Raises:
        ValueError: If two specs at one site have a token in common in every long prompt.
    """
    at: dict[Any, list[InterventionConfig]] = {}
    for one, site in zip(resolved, sites, strict=True):
        earlier = at.setdefault(site, [])
        for other in earlier:
            if share_no_head(one, other):
                continue
            if one.positions and other.positions and one.positions.overlaps(other.positions):
                raise ValueError(
                    f"two interventions edit one token: {one.place} at {other.positions!r} and at "
                    f"{one.positions!r}. Positions of interventions on one layer must be disjoint."
                )
        earlier.append(one)


def share_no_head(one: InterventionConfig, other: InterventionConfig) -> bool:
    """Whether two interventions at one site edit different heads, and so never meet."""
    return not (one.heads is None or other.heads is None or set(one.heads) & set(other.heads))
