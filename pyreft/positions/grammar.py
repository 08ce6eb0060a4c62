"""The small language that says which tokens an intervention edits, and the words that users add.

spec := part ("+" part)*
part := f<n>          the first n tokens of the prompt
      | l<n>          the last n tokens of the prompt
      | prompt        every token of the prompt
      | completion    every token after the prompt, generated ones too
      | all           prompt + completion
      | <index>       one token of the prompt; -1 is its last
      | <name>        a function registered with `register_position`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

from torch import Tensor

from pyreft.positions.tokens import Tokens

GRAMMAR = (
    'a position spec is parts joined by "+": f<n> (first n prompt tokens), l<n> (last n prompt '
    "tokens), prompt, completion, all, an index into the prompt (negative from its end), or the "
    'name of a registered function; for example "f7+l7", "l1", "prompt", [0, -1]'
)

REGIONS = ("prompt", "completion")

PositionFunction = Callable[[Tokens], Tensor]

_functions: dict[str, PositionFunction] = {}


def read_string(spec: str) -> dict[str, Any]:
    """The fields of the `PositionSpec` that a string says.

    Raises:
        ValueError: If it does not parse; the message shows the grammar.
    """
    first, last, regions, indices, functions = 0, 0, set(), [], []
    for part in (part.strip() for part in spec.split("+")):
        if match := re.fullmatch(r"([fl])([0-9]+)", part):
            count = read_index(int(match[2]))
            if count == 0 or (first if match[1] == "f" else last):
                raise ValueError(
                    f"position spec {spec!r}: {part!r} "
                    f"{'selects nothing' if count == 0 else 'is given twice'}; {GRAMMAR}."
                )
            first, last = (count, last) if match[1] == "f" else (first, count)
        elif part in REGIONS:
            regions.add(part)
        elif part == "all":
            regions.update(REGIONS)
        elif re.fullmatch(r"-?[0-9]+", part):
            indices.append(read_index(int(part)))
        elif part in _functions:
            functions.append(part)
        else:
            known = f" (registered: {', '.join(sorted(_functions))})" if _functions else ""
            raise ValueError(
                f"position spec {spec!r}: cannot read {part!r}; {GRAMMAR}{known}. A function "
                "of your own is registered first, with pyreft.register_position."
            )
    return {
        "first": first,
        "last": last,
        "regions": frozenset(regions),
        "indices": in_order(indices),
        "functions": tuple(sorted(set(functions))),
    }


def in_order(indices: Iterable[int]) -> tuple[int, ...]:
    """Each once, as they lie in a long prompt."""
    return tuple(sorted(set(indices), key=lambda index: (index < 0, index)))


def read_index(index: Integral | int) -> int:
    """The index, which must be one of a text.

    Raises:
        ValueError: If no text is that long.
    """
    if not -(2**31) < int(index) < 2**31:
        raise ValueError(f"the position {index} is beyond any text; {GRAMMAR}.")
    return int(index)


def register_position(name: str, function: PositionFunction) -> PositionFunction:
    """Give a position function a name, so that configs can use it and checkpoints can hold it.

    Args:
        name: A Python identifier that is no part of the grammar already.
        function: From `Tokens` to a (B, T) bool mask of the tokens to edit.

    Raises:
        ValueError: If the name is reserved or no identifier.
    """
    word = name if isinstance(name, str) else ""
    reserved = word in (*REGIONS, "all") or re.fullmatch(r"[fl]\d+", word)
    if not word.isidentifier() or reserved:
        raise ValueError(f"{name!r} cannot name a position function: {GRAMMAR}.")
    if not callable(function):
        raise TypeError(f"a position function is callable, got {function!r}.")
    _functions[name] = function
    return function


def find_function(function: str | PositionFunction) -> PositionFunction:
    """A function, given that or the name that `register_position` gave it."""
    return _functions[function] if isinstance(function, str) else function


def find_name(function: str | PositionFunction) -> str | None:
    """The name of a function, given that or the name; None if it has none."""
    if isinstance(function, str):
        return function
    return next((name for name, one in _functions.items() if one == function), None)
