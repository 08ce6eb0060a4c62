"""The keys of interventions, in `ReftModel.interventions` and in files."""

from __future__ import annotations

from collections.abc import Sequence

from pyreft.config.intervention import InterventionConfig, is_path


def intervention_keys(configs: Sequence[InterventionConfig]) -> list[str]:
    """Upstream's keys: component and layer, and a count if several interventions share them."""
    seen: dict[str, int] = {}
    keys = []
    for config in configs:
        name = config.component.replace(".", "_")
        place = f"comp_{name}" if is_path(config.component) else f"layer_{config.layer}_comp_{name}"
        place += "_unit_pos_nunit_1"
        keys.append(f"{place}#{seen.setdefault(place, 0)}")
        seen[place] += 1
    return keys
