"""A config, as people see it in a notebook: a table, and a picture of what it edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from pyreft.config.groups import group_alike, name_positions, table_of, without_layer
from pyreft.config.intervention import InterventionConfig
from pyreft.config.layer_counts import split_stack
from pyreft.config.picture import draw
from pyreft.tables import Table, heading, preformatted, printable

if TYPE_CHECKING:
    from pyreft.config.reft import ReftConfig

# The fields that are always shown; others are if they differ from their defaults.
_MAIN = ("layers", "positions", "kind", "rank")


def short_form(config: ReftConfig) -> dict[str, object]:
    """The main fields of the short form, and those that differ from their defaults."""
    values = {f.name: (getattr(config, f.name), f.default) for f in fields(config)}
    return {n: v for n, (v, default) in values.items() if n in _MAIN or v != default}


def config_text(config: ReftConfig) -> str:
    """What `repr` says: the short form, or each group of interventions that are alike."""
    if config.representations is None:
        said = short_form(config).items()
        return f"ReftConfig({', '.join(f'{name}={value!r}' for name, value in said)})"
    lines = ""
    for group in group_alike(config.representations):
        shown = repr(group.first)
        if (count := len(group.members)) > 1:
            where = f"layers {group.named_layers}" if group.layers else f"{count} of"
            shown = f"{where}: {repr(without_layer(group.first)).replace('layer=None, ', '', 1)}"
        lines += f"\n    {shown},"
    beside = f", modules_to_save={config.modules_to_save}" if config.modules_to_save else ""
    return f"ReftConfig(representations=[{lines}\n]{beside})"


def config_html(config: ReftConfig) -> str:
    """A config as HTML: a table and the picture, one column wide if the layers are not known."""
    if config.representations is None:
        shown = short_form(config) | {"positions": name_positions(config.positions)}
        rows = [[name, printable(str(value))] for name, value in shown.items()]
        table = Table(["field", "value"], rows)
    else:
        table = table_of(group_alike(config.representations))
    try:
        picture = draw(_drawable(config))
    except (TypeError, ValueError) as error:  # as a model would raise it
        picture = str(error)
    said = table._repr_html_() + trained_html(config)
    return heading("ReftConfig") + said + preformatted(picture)


def edits_html(
    config: ReftConfig, layers: int | None = None, decoder_layers: int | None = None
) -> str:
    """What a resolved config edits, as HTML: a table and the picture; for counts, see `draw`."""
    listed: Sequence[InterventionConfig] = config.representations
    table, picture = table_of(group_alike(listed)), draw(listed, layers, decoder_layers)
    return table._repr_html_() + trained_html(config) + preformatted(picture)


def trained_html(config: ReftConfig) -> str:
    """The parts of the base model that are trained as well, as HTML; empty if there are none."""
    if config.representations is None or not config.modules_to_save:
        return ""
    names = ", ".join(map(printable, config.modules_to_save))
    return preformatted(f"trained with the base model: {names}")


def _drawable(config: ReftConfig) -> list[InterventionConfig]:
    """The interventions for a model that is not known: without layers if those depend on it.

    Raises:
        TypeError, ValueError: If no model has them.
    """
    if config.representations is not None:
        listed = list(config.representations)
        if all(one.layer is None or one.layer >= 0 for one in listed):
            return listed
        return [without_layer(group.first) for group in group_alike(listed)]
    two = split_stack(config.component)[0] is not None
    layers = config.layers if isinstance(config.layers, list) else [config.layers]
    indices = [n for n in layers if isinstance(n, int) and n >= 0]
    if len(indices) < len(layers):
        alike = replace(config, layers="all").resolve(1, 1 if two else None)
        return [without_layer(one) for one in alike]
    count = max(indices, default=0) + 1
    return config.resolve(count, count if two else None)
