"""The word of position specs that users add to: functions, and their names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyreft.positions.spans import Ends
from pyreft.positions.tokens import Tokens
from pyreft.positions.words import WORDS, Word, describe_grammar

PositionFunction = Callable[[Tokens], Tensor]

_functions: dict[str, PositionFunction] = {}


class Chosen(Word):
    """The tokens that a function returns; a function and its registered name are the same word."""

    syntax, meaning = "<name>", "what a registered function returns"
    reads_prompt, several = False, True

    def __init__(self, function: str | PositionFunction) -> None:
        # A function may be registered later, and a name be registered for another function.
        self._function = function

    @classmethod
    def parse(cls, text: str) -> Word | None:
        return cls(text) if text in _functions else None

    @property
    def function(self) -> PositionFunction:
        """The function itself."""
        given = self._function
        return _functions[given] if isinstance(given, str) else given

    @property
    def name(self) -> str | None:
        """The name it is registered under, None if it is not registered."""
        if isinstance(self._function, str):
            return self._function
        return next((name for name, one in _functions.items() if one == self._function), None)

    @property
    def sorted_by(self) -> str:
        return self.name or ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and self.function == other.function

    def __hash__(self) -> int:
        return hash(Chosen)

    def __str__(self) -> str:
        if self.name is None:
            raise ValueError(
                f"the position function {self._function!r} has no name, so it cannot be saved; "
                'register it with pyreft.register_position("name", function) and use the name.'
            )
        return self.name

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        name = repr(self._function)
        chosen = self.function(tokens)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
            raise ValueError(f"position function {name} must return a bool tensor, got {chosen!r}.")
        if chosen.shape != tokens.prompt.shape:
            raise ValueError(
                f"position function {name} must return a mask of shape "
                f"{tuple(tokens.prompt.shape)}, got {tuple(chosen.shape)}."
            )
        if bool((chosen & ~tokens.prompt).any()):
            raise ValueError(
                f"position function {name} chose tokens outside the prompt. It is not called for "
                'generated tokens: for those use "completion" or "all".'
            )
        return chosen


def register_position(name: str, function: PositionFunction) -> PositionFunction:
    """Register a position function under a name, for configs and checkpoints.

    Args:
        name: A Python identifier that is not part of the grammar already.
        function: From `Tokens` to a (B, T) bool mask of the tokens to edit.

    Returns:
        The function.

    Raises:
        ValueError: If the name is reserved or no identifier.
        TypeError: If the function is not callable.
    """
    word = name if isinstance(name, str) else ""
    reserved = word == "all" or any(_is_word(cls, word) for cls in WORDS if cls is not Chosen)
    if not word.isidentifier() or reserved:
        raise ValueError(f"{name!r} cannot name a position function: {describe_grammar()}.")
    if not callable(function):
        raise TypeError(f"a position function is callable, got {function!r}.")
    _functions[name] = function
    return function


def registered_names() -> list[str]:
    """The names of the registered functions."""
    return sorted(_functions)


def _is_word(cls: type[Word], text: str) -> bool:
    try:
        return cls.parse(text) is not None
    except ValueError:
        return True
