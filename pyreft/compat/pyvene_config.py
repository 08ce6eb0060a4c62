"""Convert pyvene's config of interventions to ours."""

from __future__ import annotations

from typing import Any

from pyreft.config import ReftConfig


def is_config(config: Any) -> bool:
    """Whether it is pyvene's config of interventions."""
    named = any(cls.__name__ == "IntervenableConfig" for cls in type(config).__mro__)
    return named and hasattr(config, "representations")


def read_config(config: Any) -> ReftConfig:
    """Convert pyvene's config to ours.

    Raises:
        ValueError: If it needs a feature that ReFT does not have.
    """
    if config.mode != "parallel":
        raise ValueError(f"ReFT has no sources to run before the base, so no mode={config.mode!r}.")
    types, rows = config.intervention_types, config.representations
    listed = list(types) if isinstance(types, (list, tuple)) else [types] * len(rows)
    representations = []
    for row, cls in zip(rows, listed, strict=True):
        entry = row._asdict()
        if entry["intervention"] is None and entry["intervention_type"] is None:
            entry["intervention_type"] = cls
        if entry["intervention"] is not None:
            entry["intervention_type"] = None
        representations.append(entry)
    return ReftConfig(representations=representations)
