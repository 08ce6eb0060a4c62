"""The source of a served adapter: one adapter, or several with weights.

source := part ("+" part)*      part := adapter ["*" weight]      "cats*0.5 + dogs"
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyreft.compat.formats import ANY_FORMAT
from pyreft.sharing import (
    Adapter,
    AdapterError,
    HubSource,
    find_adapter,
    read_adapter,
    save_adapter,
)

# An adapter, and the factor of its edits.
Weighted = tuple[Adapter, float]
_WEIGHTS = "weights.json"


class Part(NamedTuple):
    """One adapter of a source.

    Args:
        adapter: A directory, a repository on the Hub, or the name of a served adapter.
        weight: The factor of its edits.
    """

    adapter: str
    weight: float = 1.0


def parse_source(source: str) -> list[Part]:
    """The adapters that a source names. A directory wins over all else that it may mean.

    Raises:
        AdapterError: If a weight is not a finite number, or an adapter has no name.
    """
    if not {"*", "+"} & set(source) or "\0" in source or os.path.exists(source):
        return [Part(source)]
    return [_parse_part(text.strip(), source) for text in source.split("+")]


def read_source(source: str, named: Mapping[str, str]) -> list[Weighted]:
    """Read what a source names, adapters of any format.

    Args:
        source: The source.
        named: For names of served adapters, the directories that `write_parts` wrote.

    Raises:
        AdapterError: If there is no adapter, or it is damaged.
    """
    found: list[Weighted] = []
    for name, weight in parse_source(source):
        if name in named:
            found += [(one, weight * factor) for one, factor in read_parts(named[name])]
        else:
            directory = find_adapter(name, HubSource(), ANY_FORMAT.others)
            found.append((ANY_FORMAT.read(directory), weight))
    return found


def write_parts(directory: Path, saved: Sequence[Weighted]) -> None:
    """Write adapters with weights to an empty directory."""
    for index, (adapter, _) in enumerate(saved):
        save_adapter(directory / str(index), adapter)
    (directory / _WEIGHTS).write_text(json.dumps([weight for _, weight in saved]))


def read_parts(directory: str | os.PathLike[str]) -> list[Weighted]:
    """Read what `write_parts` wrote.

    Raises:
        AdapterError: If it is damaged.
        OSError: If it is gone.
    """
    weights = json.loads((Path(directory) / _WEIGHTS).read_text())
    return [
        (read_adapter(Path(directory) / str(index)), weight) for index, weight in enumerate(weights)
    ]


def _parse_part(text: str, source: str) -> Part:
    adapter, star, weight = (word.strip() for word in text.rpartition("*"))
    if not star:
        adapter, weight = text, "1"
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not adapter or not math.isfinite(number):
        raise AdapterError(
            f"{source!r} is no combination of adapters, because of {text!r}: give adapters with "
            "finite weights, as in 'cats*0.5+dogs'."
        )
    return Part(adapter, number)
