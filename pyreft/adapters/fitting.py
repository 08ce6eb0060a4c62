"""Make an adapter from a model, and check that a saved one fits: ReftModel <-> Adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.build import Kinds, make_kinds
from pyreft.base_model.description import base_fingerprint, describe_base
from pyreft.base_model.trained import lies_in
from pyreft.config import InterventionConfig, ReftConfig, intervention_keys
from pyreft.interventions import tensors_of
from pyreft.interventions.projection import complete_tensors
from pyreft.lora.peft_lora import describe_lora
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import OF_BASE, OF_LORA

# How many more numbers a config may ask for than its file has, before anything is allocated.
_ALLOWED_EXCESS = 2**20


def take_adapter(
    base: PreTrainedModel,
    attached: AttachedAdapter,
    trained: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
) -> Adapter:
    """Collect what is saved of an adapter on a base model.

    Args:
        base: The base model.
        attached: The adapter on it.
        trained: Tensors of the base model that are trained as well, by their name in it.
        lora: The tensors of PEFT's LoRA that are trained as well, by PEFT's names.

    Raises:
        ValueError: If a tensor is not finite, or the LoRA is of a kind that cannot be saved.
    """
    config = attached.config
    tensors = _tensors(attached, trained, lora)
    for name, made in _made(config.representations).items():
        # The dtype that the config gives, which `.to(...)` may have changed.
        tensors[name] = tensors[name].to(made.dtype)
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise ValueError(
                f"the parameter {name} is not finite (NaN or infinite), so the adapter is not "
                "saved: training has diverged. Go back to an earlier checkpoint and lower the "
                "learning rate."
            )
    named = config.modules_to_save or []
    by_hand = [name for name in trained if not lies_in(name, named)]
    if by_hand:
        config = replace(config, modules_to_save=[*named, *by_hand])
    described = describe_lora(base) if lora else None
    return Adapter(config, tensors, describe_base(base), lora=described)


def with_kinds(adapter: Adapter, kinds: Kinds) -> Adapter:
    """The adapter with interventions of these kinds built, see `make_kinds`.

    Raises:
        AdapterError: If the saved arguments do not fit them.
    """
    with explained(adapter, TypeError):
        return replace(adapter, config=make_kinds(adapter.config, kinds))


@contextmanager
def explained(adapter: Adapter, but: type[Exception] = AdapterError) -> Iterator[None]:
    """Raise AdapterError for errors inside the block, which works on a saved adapter.

    A user-defined kind may raise any exception for arguments that it does not expect.

    Args:
        adapter: The adapter.
        but: Errors that are raised unchanged, like AdapterError.
    """
    try:
        yield
    except (AdapterError, but):
        raise
    except Exception as error:
        raise AdapterError(f"the adapter {adapter.origin} does not fit: {error}") from error


def require_base(adapter: Adapter, model: PreTrainedModel) -> None:
    """Raise AdapterError unless the adapter was trained on a model with this fingerprint."""
    for name, has in base_fingerprint(model).items():
        expected = adapter.base.get(name)
        if expected is not None and expected != has:
            trained_on = adapter.base.get("name_or_path") or "another base model"
            raise AdapterError(
                f"{adapter.origin} is an adapter for {trained_on}, with {name} {expected!r}; this "
                f"model has {name} {has!r}."
            )


def require_config(adapter: Adapter, config: ReftConfig, left_to_batch: Set[int]) -> None:
    """Raise AdapterError unless the adapter has this config, except for positions left open."""
    theirs, ours = adapter.config.to_dict()["interventions"], config.to_dict()["interventions"]
    if len(theirs) != len(ours):
        raise AdapterError(
            f"{adapter.origin} has {len(theirs)} interventions, this model has {len(ours)}."
        )
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        for name in ("layer", "component", "kind", "arguments", "heads", "tied_to", "positions"):
            left_open = name == "positions" and index in left_to_batch
            if their.get(name) != our.get(name) and not left_open:
                raise AdapterError(
                    f"intervention {index} of {adapter.origin} has {name} {their.get(name)!r}, "
                    f"this model's has {our.get(name)!r}."
                )


def require_sizes(adapter: Adapter) -> None:
    """Raise AdapterError if the config asks for far more numbers than the file has.

    This runs before allocation, because a config may specify any size. Loading reports smaller
    differences exactly.
    """
    try:
        made = _made(adapter.config.representations)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise AdapterError(f"the adapter {adapter.origin} does not fit: {error}") from error
    asked = sum(tensor.numel() for tensor in made.values())
    stored = sum(tensor.numel() for tensor in complete_tensors(adapter.tensors, made).values())
    if asked > stored + _ALLOWED_EXCESS:
        raise AdapterError(
            f"the config of {adapter.origin} asks for {asked:,} numbers, by embed_dim and "
            "low_rank_dimension; its file has fewer."
        )


def fit_tensors(
    adapter: Adapter,
    attached: AttachedAdapter,
    trained: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of an adapter on a base model with the saved ones.

    Args:
        adapter: The saved adapter.
        attached: The adapter on the base model.
        trained: Tensors of the base model that are trained as well, by their name in it.
        lora: Those of its LoRA, by PEFT's names.

    Raises:
        AdapterError: If a name, a shape or a type differs, or a value is non-finite.
    """
    ours = _tensors(attached, trained, lora)
    saved = complete_tensors(adapter.tensors, ours)
    theirs = [name.removeprefix(OF_BASE) for name in adapter.tensors if name.startswith(OF_BASE)]
    named = adapter.config.modules_to_save or []
    empty = {part for part in named if not any(lies_in(name, [part]) for name in theirs)}
    if (
        set(theirs) != set(trained)
        or not all(lies_in(name, named) for name in theirs)
        # A part that is tied to another one has its tensors under the name of that one.
        or not empty <= set(attached.trained.names)
    ):
        raise AdapterError(
            f"{adapter.origin} was trained with modules_to_save "
            f"{sorted({*named, *theirs}) or None}, this model with {sorted(trained) or None}."
        )
    if wrong := sorted(set(ours) ^ set(saved)):
        verb = "lacks" if wrong[0] in ours else "has the unknown"
        raise AdapterError(f"{adapter.origin} {verb} tensor {wrong[0]}.")
    made = _made(attached.config.representations)
    for name, tensor in ours.items():
        like = made.get(name, tensor)
        _require_like(adapter.origin, name, saved[name], like, exactly=name in made)
    for name, tensor in saved.items():
        if not _is_finite(tensor):
            raise AdapterError(f"the tensor {name} of {adapter.origin} is not finite.")
    return [(tensor, saved[name]) for name, tensor in ours.items()]


@torch.no_grad()
def load_tensors(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy saved tensors into those of the model."""
    for tensor, saved in pairs:
        tensor.copy_(saved)


def _require_like(
    origin: str, name: str, saved: Tensor, tensor: Tensor, exactly: bool = False
) -> None:
    """Raise AdapterError unless shape and type agree; unless `exactly`, any float type fits."""
    both_float = saved.is_floating_point() and tensor.is_floating_point() and not exactly
    if saved.shape != tensor.shape or not (both_float or saved.dtype == tensor.dtype):
        raise AdapterError(
            f"the tensor {name} of {origin} is {_describe(saved)}; the config makes it "
            f"{_describe(tensor)}."
        )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _made(configs: Sequence[InterventionConfig]) -> dict[str, Tensor]:
    """The tensors that the six kinds have, by name, without their data."""
    made: dict[str, Tensor] = {}
    for config, key in zip(configs, intervention_keys(configs), strict=True):
        if config.tied_to is None:
            tensors = tensors_of(config.kind, config.present_arguments) or {}
            made |= {f"{key}.{name}": tensor for name, tensor in tensors.items()}
    return made


def _tensors(
    attached: AttachedAdapter, trained: Mapping[str, Tensor], lora: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every tensor of the adapter by name; those of tied interventions once."""
    found = {f"{OF_BASE}{name}": tensor for name, tensor in trained.items()}
    found |= {f"{OF_LORA}{name}": tensor for name, tensor in lora.items()}
    configs, modules = attached.config.representations, attached.interventions.items()
    return found | {
        f"{key}.{name}": tensor
        for config, (key, module) in zip(configs, modules, strict=True)
        if config.tied_to is None
        for name, tensor in module.state_dict().items()
    }


def _describe(tensor: Tensor) -> Any:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
