"""The hidden state in what a module returns: itself, or the first tensor of several.

Tensor                           the hidden state
(Tensor, ...), [Tensor, ...]     the first tensor; so in named tuples, and in nested ones

What a whole model returns, a ModelOutput, is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def hidden_of(output: object) -> Tensor | None:
    """The hidden state in an output, None if it has none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    found = (hidden_of(value) for value in _values(output))
    return next((one for one in found if one is not None), None)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The same output with another hidden state; nothing in the original changes."""
    if isinstance(output, Tensor):
        return hidden
    index = next(i for i, value in enumerate(output) if hidden_of(value) is not None)
    value = with_hidden(output[index], hidden)
    if hasattr(output, "_asdict"):
        # The class of a named tuple takes its fields one by one.
        return output._replace(**{list(output._asdict())[index]: value})
    return type(output)([*output[:index], value, *output[index + 1 :]])


def _values(output: object) -> Sequence[object]:
    return output if isinstance(output, (tuple, list)) else ()
