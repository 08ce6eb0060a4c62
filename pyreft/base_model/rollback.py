"""Restore a base model if putting an adapter on it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyreft.base_model.trained import remember_requires_grad

# The attributes of a module by name, each with a copy of its content if it is a dict.
Kept = dict[str, tuple[Any, dict[str, Any] | None]]


@contextmanager
def unchanged_by_failure(model: nn.Module) -> Iterator[None]:
    """Undo the block's changes to the structure of a model if the block raises.

    The structure is its modules, hooks, attributes, and the `requires_grad` of its parameters.
    The values of its tensors are not stored, because they are changed only after everything else
    has succeeded.
    """
    modules = [(module, _attributes(module)) for module in model.modules()]
    restore_requires_grad = remember_requires_grad(model)
    try:
        yield
    except BaseException:
        for module, before in modules:
            _restore(module, before)
        restore_requires_grad()
        raise


def _attributes(module: nn.Module) -> Kept:
    """The attributes of a module, and the content of its dicts of parameters, children, hooks."""
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, before: Kept) -> None:
    for name in set(vars(module)) - set(before):
        del vars(module)[name]
    for name, (value, content) in before.items():
        if content is not None:
            # The same dict, because handles of hooks refer to it.
            value.clear()
            value.update(content)
        vars(module)[name] = value
