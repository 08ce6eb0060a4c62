"""The types of a config's fields, and the values for JSON that are made of users' arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from torch import nn

from pyreft.interventions import intervention_class, kind_of
from pyreft.positions import PositionSpec

# The fields of the short form, as JSON has them.
SHORT_FORM_TYPES: dict[str, tuple[type, ...]] = {
    "layers": (str, Integral, list),
    "component": (str,),
    "positions": (str, int, list, PositionSpec),
    "kind": (str,),
    "rank": (int,),
    "tied": (bool,),
    "heads": (list,),
    "dropout": (float, int),
    "act_fn": (str,),
    "add_bias": (bool,),
    "dtype": (str,),
    "arguments": (dict,),
    "modules_to_save": (list,),
}
_OPTIONAL = ("heads", "act_fn", "arguments", "modules_to_save")


def check_types(entry: Mapping[str, object]) -> None:
    """Raise ValueError if a field is unknown or its value is of another type."""
    for name, value in entry.items():
        if name not in SHORT_FORM_TYPES:
            raise ValueError(
                f"unknown field {name!r} of a config; "
                f"known: interventions, or {', '.join(SHORT_FORM_TYPES)}."
            )
        types = SHORT_FORM_TYPES[name]
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if wrong and not (value is None and name in _OPTIONAL):
            raise ValueError(f"the field {name!r} of a config cannot be {value!r}.")


def read_kind(kind: object) -> str:
    """The name of a kind, given its name or its class.

    Raises:
        TypeError: If it is neither.
        ValueError: If no class is registered under the name.
    """
    if isinstance(kind, str):
        intervention_class(kind)
        return kind
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise TypeError(
            f"the kind of an intervention is a name or a module class, got {kind!r}. A module that "
            "exists already goes into representations."
        )
    return kind_of(kind)


def read_heads(heads: object) -> tuple[int, ...] | None:
    """Heads as a tuple.

    Raises:
        ValueError: If they are not a list of different indices from 0.
    """
    if heads is None:
        return None
    given = list(heads) if isinstance(heads, (list, tuple, range)) else []
    indices = [head for head in given if type(head) is int and head >= 0]
    if not given or len(set(indices)) < len(given):
        raise ValueError(f"heads must be a list of different indices from 0, got {heads!r}.")
    return tuple(given)


def read_weights(weights: object, count: int) -> list[float]:
    """The weights of `count` adapters, as floats.

    Raises:
        TypeError: If they are not a list of numbers.
        ValueError: If there are more or fewer, or one is non-finite.
    """
    listed: list[object] = list(weights) if isinstance(weights, Iterable) else [None]
    numbers = [one for one in listed if isinstance(one, Real) and not isinstance(one, bool)]
    if len(numbers) < len(listed):
        raise TypeError(f"weights must be a list of numbers, got {weights!r}.")
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise ValueError(
            f"there must be a finite weight for each of the {count} adapters, got {weights!r}."
        )
    return [float(number) for number in numbers]


def read_names(names: object) -> list[str]:
    """The names in `modules_to_save`.

    Raises:
        ValueError: If it is not a list of names.
    """
    listed = list(names) if isinstance(names, (list, tuple)) else []
    if not listed or not all(isinstance(name, str) and name for name in listed):
        raise ValueError(
            f"modules_to_save must be a list of names of modules, got {names!r}; for the head of a "
            'classifier of BERT ["classifier"], of Llama ["score"].'
        )
    return listed
