"""Kinds by name: what a config may ask for, and what a checkpoint may hold.

Loading an adapter never imports code. A kind is a name that is looked up here; a user's own
module is registered in the user's own code before it is loaded.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.kinds import KINDS

_kinds: dict[str, type[nn.Module]] = {**KINDS}


def register_intervention(kind: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class as a kind of intervention, so that it can be saved and loaded.

        @pyreft.register_intervention("scale")
        class Scale(torch.nn.Module):
            def __init__(self, embed_dim): ...
            def forward(self, hidden): ...      # (..., D) -> (..., D)

    Its constructor arguments are saved with it: they are read from attributes of the same
    names, or from `get_config()` if the class has that.

    Raises:
        ValueError: If the name is no identifier or belongs to another class.
        TypeError: If it is not applied to a module class.
    """
    if not isinstance(kind, str) or not kind.isidentifier():
        raise ValueError(f"a kind is named by an identifier, got {kind!r}.")

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"only a torch.nn.Module class can be an intervention, got {cls!r}.")
        # A notebook cell that is run again defines the class anew: same name, same kind.
        if kind in _kinds and _kinds[kind].__qualname__ != cls.__qualname__:
            raise ValueError(f"the kind {kind!r} is {_kinds[kind].__name__}; choose another name.")
        _kinds[kind] = cls
        return cls

    return register


def intervention_class(kind: str) -> type[nn.Module]:
    """The class of a kind.

    Raises:
        ValueError: If no class is registered under that name.
    """
    if kind not in _kinds:
        raise ValueError(
            f"unknown kind of intervention {kind!r}; known: {', '.join(sorted(_kinds))}. A kind of "
            f'your own is registered in your code first: @pyreft.register_intervention("{kind}").'
        )
    return _kinds[kind]


def kind_of(intervention: nn.Module | type[nn.Module]) -> str | None:
    """The kind a module, or a class, is registered under, or None."""
    cls = intervention if isinstance(intervention, type) else type(intervention)
    return next((kind for kind, known in _kinds.items() if known is cls), None)


def tensors_of(kind: str, arguments: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """What tensors an intervention has, by name, without data and without memory for it.

    None for a kind of a user's own, whose constructor may do anything.

    Raises:
        ValueError, TypeError, RuntimeError: If there is none of these arguments.
    """
    if intervention_class(kind) not in KINDS.values():
        return None
    return dict(_tensors_of(kind, json.dumps(arguments, sort_keys=True)))


@lru_cache(maxsize=100)
def _tensors_of(kind: str, arguments: str) -> Mapping[str, Tensor]:
    """Once for all layers of a model, whose arguments are the same."""
    with torch.device("meta"):
        tensors: Mapping[str, Tensor] = _kinds[kind](**json.loads(arguments)).state_dict()
    return tensors


def takes_argument(cls: type[nn.Module], name: str) -> bool:
    """Whether the constructor of a class has an argument of that name, or takes any."""
    parameters = inspect.signature(cls).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def constructor_arguments(intervention: Any) -> dict[str, Any]:
    """The arguments that make an intervention anew, as JSON values.

    Raises:
        ValueError: If an argument cannot be found or is not JSON.
    """
    name = type(intervention).__name__
    told = hasattr(intervention, "get_config")
    arguments: dict[str, Any] = dict(intervention.get_config()) if told else {}
    parameters = list(inspect.signature(type(intervention).__init__).parameters.values())[1:]
    if not told and any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ValueError(
            f"{name} cannot be saved: its constructor takes any arguments. Define get_config() to "
            "say which it was given."
        )
    # A subclass may inherit get_config() and have more arguments.
    for parameter in parameters:
        wanted = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not wanted or parameter.name in arguments or parameter.name == "device":
            continue
        if not hasattr(intervention, parameter.name):
            raise ValueError(
                f"{name} cannot be saved: its constructor takes {parameter.name!r}, which it does "
                "not keep. Store it in an attribute of the same name, or define get_config()."
            )
        arguments[parameter.name] = getattr(intervention, parameter.name)
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be saved: its constructor arguments are no JSON ({error}). "
            "Define get_config() to give them as numbers, strings, lists and dicts."
        ) from None
    return arguments
