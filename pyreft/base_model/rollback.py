"""A base model on which something was put that failed: it is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyreft.base_model.trained import remember_learning

# What a module has by name, and what each of its dicts holds.
Kept = dict[str, tuple[Any, dict[str, Any] | None]]


@contextmanager
def unchanged_by_failure(model: nn.Module) -> Iterator[None]:
    """Undo, if the block raises, what it did to the structure of a model.

    That is its modules, its hooks, its attributes, and which of its parameters learn; the numbers
    in its tensors are not kept, since nobody changes them before all else has succeeded.
    """
    modules = [(module, _attributes(module)) for module in model.modules()]
    restore_learning = remember_learning(model)
    try:
        yield
    except BaseException:
        for module, before in modules:
            _restore(module, before)
        restore_learning()
        raise


def _attributes(module: nn.Module) -> Kept:
    """What a module has, and what its dicts hold: of parameters, of children, of hooks."""
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, before: Kept) -> None:
    for name in set(vars(module)) - set(before):
        del vars(module)[name]
    for name, (value, content) in before.items():
        if content is not None:
            # The same dict, since handles of hooks know it.
            value.clear()
            value.update(content)
        vars(module)[name] = value
