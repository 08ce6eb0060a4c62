"""The edits of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from pyreft.editing.edits import FindEdits, SiteEdits
from pyreft.editing.tower_edits import TowerEdits


@dataclass
class Edits:
    """The edits of one forward pass.

    Args:
        sites: The number of a site -> its edits.
        towers: The edits of parts that read no text, None if there are none.
        times: Site -> how often its module ran, where it runs several times.
        reached: Whether any of the sites ran; compiled code does not say so.
    """

    sites: Mapping[int, SiteEdits]
    towers: TowerEdits | None = None
    times: dict[int, int] = field(default_factory=dict)
    reached: bool = False

    def at(self, site: int, run: int, runs: int) -> FindEdits | None:
        """What finds the edits of a site, None if it has none.

        Args:
            site: The site.
            run, runs: Which time its module is edited, of how many times that it runs.
        """
        if not torch.compiler.is_compiling():
            self.reached = True
        if runs > 1:
            now = self.times.get(site, 0)
            self.times[site] = now + 1
            if now % runs != run:
                return None
        if self.towers is not None and site in self.towers:
            return partial(self.towers.at, site)
        found = self.sites.get(site)
        return None if found is None else found.for_any_hidden


def edits_something(edits: Edits | None) -> bool | None:
    """Whether any token is edited; None if only the pass that is to come will show it."""
    if edits is None:
        return False
    calls = [call for site in edits.sites.values() for call in site.calls]
    if any(call.slots.scatter.numel() for call in calls):
        return True
    return False if edits.towers is None else edits.towers.edited or None
