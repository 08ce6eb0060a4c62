"""The edits of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from pyreft.editing.edits import FindEdits, SiteEdits
from pyreft.editing.towers import TowerEdits


@dataclass(frozen=True)
class Edits:
    """The edits of one forward pass.

    Args:
        sites: The number of a site -> its edits.
        towers: The edits of parts that read no text, None if there are none.
    """

    sites: Mapping[int, SiteEdits]
    towers: TowerEdits | None = None

    def at(self, site: int) -> FindEdits | None:
        """What finds the edits of a site, None if it has none."""
        if self.towers is not None and site in self.towers:
            return partial(self.towers.at, site)
        found = self.sites.get(site)
        return None if found is None else found.in_any


def edits_something(edits: Edits | None) -> bool | None:
    """Whether any token is edited; None if only the pass that is to come will show it."""
    if edits is None:
        return False
    calls = [call for site in edits.sites.values() for call in site.calls]
    if any(call.slots.scatter.numel() for call in calls):
        return True
    return False if edits.towers is None else edits.towers.edited or None
