"""Configs + components -> modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from pyreft.base_model.components import Component
from pyreft.base_model.stacks import size_of, text_config
from pyreft.config import InterventionConfig, ReftConfig
from pyreft.interventions import (
    constructor_arguments,
    intervention_class,
    kind_of,
    read_arguments,
    takes_argument,
)

# The caller's argument for kinds that are not registered.
Kinds = Mapping[str, Callable[..., nn.Module]] | Iterable[type[nn.Module]]


def build_interventions(
    configs: Sequence[InterventionConfig],
    components: Sequence[Component],
    base: PreTrainedModel,
) -> list[InterventionConfig]:
    """Build the modules that do not exist yet, and check that each fits its component.

    Args:
        configs: The interventions.
        components: The component that each edits, in the same order.
        base: The base model.

    Returns:
        The configs, each with its module and all of its constructor arguments.

    Raises:
        ValueError: If an argument is out of range or the width of a module does not fit.
    """
    _require_one_class(configs)
    built: list[InterventionConfig] = []
    for config, component in zip(configs, components, strict=True):
        width = _width(config, component, base)
        if config.tied_to is not None:
            other = built[config.tied_to]
            if config.kind != other.kind:
                raise ValueError(
                    f"the intervention at {config.place} is {config.kind!r}, but tied to one that "
                    f"is {other.kind!r}."
                )
            module = other.intervention
        else:
            # Checked before building: a config may specify any size.
            asked = (config.arguments or {}).get("embed_dim", width)
            _require_width(config, component, asked, width)
            module = config.intervention or _build(config, width)
        assert module is not None
        _require_width(config, component, getattr(module, "embed_dim", width), width)
        arguments = constructor_arguments(module)
        built.append(replace(config, intervention=module, arguments=arguments))
    return built


def _require_one_class(configs: Sequence[InterventionConfig]) -> None:
    """Raise ValueError for modules of several classes that have one name in files."""
    classes: dict[str, type] = {}
    for config in configs:
        cls = type(config.intervention)
        if config.intervention is not None and classes.setdefault(config.kind, cls) is not cls:
            raise ValueError(
                f"two classes of the adapter are called {config.kind!r}, so that files could not "
                'distinguish them: put @pyreft.register_intervention("another_name") on one.'
            )


def make_kinds(config: ReftConfig, kinds: Kinds) -> ReftConfig:
    """Build the interventions of kinds that the caller gives.

    Args:
        config: The config of a saved adapter.
        kinds: Classes; or a dict from the name of a kind to its class or a function that makes it.

    Raises:
        ValueError: If the saved arguments do not fit the class, or the adapter has no such kind.
        TypeError: If a value is neither class nor function, or does not return a module.
    """
    found = {one.kind for one in config.representations}
    named = kinds if isinstance(kinds, Mapping) else _by_kind(kinds)
    if isinstance(kinds, Mapping) and (unknown := sorted(set(named) - found)):
        raise ValueError(
            f"kinds has {', '.join(unknown)}, the adapter has {', '.join(sorted(found))}: give "
            "them by name, kinds={name: class}."
        )
    built = [
        replace(one, intervention=_make_kind(one, named[one.kind]))
        if one.kind in named and one.tied_to is None
        else one
        for one in config.representations
    ]
    return replace(config, representations=built)


def _by_kind(classes: Iterable[type[nn.Module]]) -> dict[str, type[nn.Module]]:
    """Classes by their kinds; kinds that the adapter does not have are allowed."""
    listed: list[Any] = [classes] if isinstance(classes, type) else list(classes)
    if any(not isinstance(cls, type) for cls in listed):
        raise TypeError(f"kinds is a list of classes, or a dict by the names of kinds: {listed}.")
    named = {kind_of(cls): cls for cls in listed}
    if len(named) < len(set(listed)):
        raise TypeError(f"two of the classes {listed} are one kind: give them by name, in a dict.")
    return named


def _make_kind(config: InterventionConfig, make: Callable[..., nn.Module]) -> nn.Module:
    if config.arguments is None and isinstance(make, type):
        raise ValueError(_without_arguments(config))
    try:
        module = make(**read_arguments(config.arguments or {}))
    except TypeError as error:
        raise ValueError(
            f"{make!r} does not make the intervention at {config.place} from "
            f"{config.arguments or 'no arguments'}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"kinds[{config.kind!r}] makes {type(module).__name__}, no module.")
    return module


def _without_arguments(config: InterventionConfig) -> str:
    return (
        f"the intervention at {config.place} was saved without the arguments of its class "
        f"{config.kind}: give a function that makes it, from_pretrained(..., kinds="
        f"{{{config.kind!r}: make}})."
    )


def _width(config: InterventionConfig, component: Component, base: PreTrainedModel) -> int:
    given = (config.arguments or {}).get("embed_dim")
    width = component.width or size_of(text_config(base), "hidden_size")
    width = width or getattr(config.intervention, "embed_dim", given)
    if not isinstance(width, int):
        raise ValueError(
            f"the width of {config.place} is not known: a run of this model on tiny inputs did not "
            "show it, because it failed or because the hidden state there has other tokens than "
            "the text, and its config has no hidden_size. Name another component, or give it, "
            'arguments={"embed_dim": ..., "low_rank_dimension": ...}.'
        )
    if component.num_heads is None:
        if config.heads is not None:
            raise ValueError(
                f"{config.component} has no heads: heads can be selected in "
                "head_attention_value_output."
            )
        return width
    for head in config.heads or ():
        if head >= component.num_heads:
            raise ValueError(
                f"head {head} is out of range: there are {component.num_heads}, 0 to "
                f"{component.num_heads - 1}."
            )
    return width // component.num_heads


def _require_width(config: InterventionConfig, component: Component, has: Any, width: int) -> None:
    if component.width is not None and has != width:
        raise ValueError(
            f"the intervention at {config.place} is for hidden states of width {has}; this model's "
            f"have width {width} there."
        )


def _build(config: InterventionConfig, width: int) -> nn.Module:
    cls = intervention_class(config.kind)
    if config.arguments is None:
        raise ValueError(_without_arguments(config))
    arguments: dict[str, Any] = dict(config.arguments)
    if takes_argument(cls, "embed_dim"):
        arguments.setdefault("embed_dim", width)
    try:
        return cls(**read_arguments(arguments))
    except TypeError as error:
        raise ValueError(
            f"cannot make the intervention at {config.place} of kind {config.kind!r} from "
            f"{arguments}: {error}"
        ) from error
