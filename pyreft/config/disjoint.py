"""On one layer the positions of interventions are disjoint (Wu et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pyreft.config.intervention import InterventionConfig


def require_disjoint(resolved: Sequence[InterventionConfig], sites: Sequence[Hashable]) -> None:
    """Refuse positions that overlap.

    Args:
        resolved: The interventions.
        sites: The site of each; interventions on the same hidden state have equal sites.

    Raises:
        ValueError: If two specs at one site have a token in common in every long prompt.
    """
    at: dict[Hashable, list[InterventionConfig]] = {}
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
    """Whether two interventions at one site edit different heads, and so never overlap."""
    return not (one.heads is None or other.heads is None or set(one.heads) & set(other.heads))
