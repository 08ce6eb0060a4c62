"""Kinds by name: those that a config or a checkpoint may have.

Loading an adapter never imports code. A kind is a name that is looked up here. A user's own class
is registered by the user's own code before the adapter is loaded, by its name or in `kinds=`.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyreft.annotations import Arguments, Json

logger = logging.getLogger(__name__)

_kinds: dict[str, type[nn.Module]] = {}


def register_intervention(kind: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class as a kind of intervention, under a name for its files.

    A class that is not registered gets its own name as its kind when it is passed to a config. To
    load its adapter in another process, register it first, or use `from_pretrained(...,
    kinds=[Scale])`.

        @pyreft.register_intervention("scale")
        class Scale(torch.nn.Module):
            def __init__(self, embed_dim): ...
            def forward(self, hidden): ...      # (..., D) -> (..., D)

    Its constructor arguments are saved with it: they are read from attributes of the same names,
    or from `get_config()` if the class has it. If an argument is not found, the class is saved
    without arguments, with a warning, and loaded with a function that constructs it.

    Args:
        kind: A Python identifier.

    Returns:
        A decorator, which returns the class as it is.

    Raises:
        ValueError: If the name is not an identifier or belongs to another class.
        TypeError: If it is not applied to a module class.
    """
    if not isinstance(kind, str) or not kind.isidentifier():
        raise ValueError(f"a kind is named by an identifier, got {kind!r}.")

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"only a torch.nn.Module class can be an intervention, got {cls!r}.")
        # A notebook cell that is run again defines the class again: same name, same kind.
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
            f"unknown kind of intervention {kind!r}; known: {', '.join(sorted(_kinds))}. A class "
            "of your own is passed when an adapter is loaded, from_pretrained(..., kinds=[Yours]), "
            f"or registered in your code before: @pyreft.register_intervention({kind!r})."
        )
    return _kinds[kind]


def built_in_kinds() -> dict[str, type[nn.Module]]:
    """The kinds of this package, by name."""
    return {kind: cls for kind, cls in _kinds.items() if _is_built_in(cls)}


def _is_built_in(cls: type) -> bool:
    return cls.__module__.startswith(f"{__package__}.kinds.")


def kind_of(intervention: nn.Module | type[nn.Module]) -> str:
    """The kind of a module, or of a class.

    A class that is not registered yet is registered under its own name, or, if another class has
    that name, under the names of its module and itself.
    """
    cls = intervention if isinstance(intervention, type) else type(intervention)
    for kind, known in _kinds.items():
        if known is cls:
            return kind
    kind, taken = cls.__name__, _kinds.get(cls.__name__)
    # A notebook cell that is run again defines the class again: same name, same kind.
    if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        kind = re.sub(r"\W", "_", f"{cls.__module__}_{cls.__qualname__}")
    _kinds[kind] = cls
    return kind


def tensors_of(kind: str, arguments: Arguments | None) -> dict[str, Tensor] | None:
    """The tensors of an intervention, by name, on the meta device.

    None for a user's own kind, whose constructor may do anything, and without arguments.

    Raises:
        ValueError, TypeError, RuntimeError: If the constructor refuses the arguments.
    """
    if arguments is None or kind not in _kinds or not _is_built_in(_kinds[kind]):
        return None
    return dict(_tensors_of(kind, json.dumps(arguments, sort_keys=True)))


@lru_cache(maxsize=100)
def _tensors_of(kind: str, arguments: str) -> Mapping[str, Tensor]:
    """Cached, because the arguments are the same for all layers of a model."""
    with torch.device("meta"):
        tensors: Mapping[str, Tensor] = _kinds[kind](**json.loads(arguments)).state_dict()
    return tensors


def takes_argument(function: Callable[..., object], name: str) -> bool:
    """Whether a function, or the constructor of a class, takes an argument of that name or any."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def accepted_arguments(kind: str, arguments: Arguments) -> Json:
    """Those of some arguments that the constructor of a kind takes.

    Raises:
        ValueError: If no class is registered under that name.
    """
    cls = intervention_class(kind)
    return {name: value for name, value in arguments.items() if takes_argument(cls, name)}


def constructor_arguments(intervention: nn.Module) -> Json | None:
    """The arguments that construct an intervention again, as JSON values.

    None, with a warning, if one cannot be found or is not JSON. The intervention is still saved;
    to load it, a function that constructs it must be given.
    """
    try:
        return _find_arguments(intervention)
    except ValueError as error:
        cls = type(intervention).__name__
        _warn_once(
            f"an adapter with {cls} will be saved without {cls}'s arguments: {error}. To load it, "
            f"a function that makes the module must be given: from_pretrained(..., kinds="
            f"{{{kind_of(intervention)!r}: make}})."
        )
        return None


def _find_arguments(intervention: Any) -> Json:
    cls = type(intervention)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if cls.__init__ is nn.Module.__init__:
        parameters = []
    if hasattr(intervention, "given") and _depth(cls, "__init__") < _depth(cls, "get_config"):
        # An inherited get_config() returns the arguments of another class's constructor.
        arguments = _as_given(parameters, intervention)
    elif hasattr(intervention, "get_config"):
        arguments = dict(intervention.get_config())
    else:
        arguments = _as_kept(parameters, intervention)
    arguments.pop("device", None)
    found = {name: _write(value) for name, value in arguments.items()}
    try:
        same = json.loads(json.dumps(found, allow_nan=False)) == _as_lists(found)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"they are not JSON ({error}), and it has no get_config() that returns them as "
            "numbers, strings, lists and dicts"
        ) from None
    if not same:
        raise ValueError("JSON would change them, such as keys that are numbers")
    return found


def _depth(cls: type, name: str) -> int:
    """The index in the MRO of the class that has a method; this package's classes count as one."""
    ours = (i for i, c in enumerate(cls.__mro__) if c.__module__.startswith(f"{__package__}."))
    has = (i for i, c in enumerate(cls.__mro__) if name in vars(c))
    return min(next(has, len(cls.__mro__)), next(ours, len(cls.__mro__)))


def _as_given(parameters: Sequence[inspect.Parameter], intervention: Any) -> Json:
    """The arguments of the constructor's call, and the defaults of those that it left out."""
    for parameter in parameters:
        several = parameter.kind == parameter.VAR_POSITIONAL
        if parameter.kind == parameter.POSITIONAL_ONLY or (several and intervention.given_more):
            raise ValueError(f"its constructor takes {parameter.name!r} by position alone")
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **intervention.given}


def _as_kept(parameters: Sequence[inspect.Parameter], intervention: nn.Module) -> Json:
    """The arguments that the module keeps in attributes of the same names."""
    arguments = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError("its constructor takes any arguments, and it has no get_config()")
        if hasattr(intervention, parameter.name):
            arguments[parameter.name] = getattr(intervention, parameter.name)
        elif parameter.name != "device":
            raise ValueError(
                f"its constructor takes {parameter.name!r}, which it keeps in no attribute of that "
                "name, and it has no get_config()"
            )
    return arguments


def _write(value: object) -> object:
    """An argument as JSON: types of torch as "torch.float32", single numbers as Python's."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, str) and value.startswith("torch."):
        raise ValueError(f"the text {value!r} would come back as a type of torch")
    if isinstance(value, (torch.Tensor, np.generic, np.ndarray)) and value.ndim == 0:
        return value.item()
    return value


def _as_lists(value: object) -> object:
    """A value with its tuples converted to lists, as in JSON."""
    if isinstance(value, dict):
        return {name: _as_lists(one) for name, one in value.items()}
    return [_as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=100)
def _warn_once(message: str) -> None:
    logger.warning(message)


def read_arguments(arguments: Arguments) -> Arguments:
    """Constructor arguments from JSON: "torch.float32" becomes a type again."""
    found = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith("torch."):
            dtype = getattr(torch, value.removeprefix("torch."), value)
            found[name] = dtype if isinstance(dtype, torch.dtype) else value
    return found
