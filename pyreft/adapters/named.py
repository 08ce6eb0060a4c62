"""Several adapters on one base model, by name: methods of `ReftModel`, named as PEFT's are.

model.load_adapter("other", adapter_name="other")
model.set_adapter("other")                            # instead of the active one
model.set_adapter(["default", "other"], [0.5, 0.5])   # both; their edits are summed
model.delete_adapter("default")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyreft.config import ReftConfig
from pyreft.config.combination import combine
from pyreft.config.fields import read_weights

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel


def add_adapter(model: EditedModel, adapter_name: str, config: ReftConfig) -> None:
    """Add a new adapter, which is not active yet.

    Args:
        adapter_name: Letters, digits, "_" and "-".
        config: The interventions to train and where they edit.

    Raises:
        ValueError: If an adapter has this name, or the config does not fit the model; nothing is
            changed.
        TypeError: If `config` is not a `ReftConfig`.
        RuntimeError: Inside `disable_adapter`, or after `unwrap`.
    """
    model.adapter_set.require_new(adapter_name)
    if not isinstance(config, ReftConfig):
        raise TypeError(f"an adapter is made of a ReftConfig, got {type(config).__name__}.")
    with model.adapter_set.making(config, model.model) as adapter:
        pass
    model.adapter_set.add(adapter_name, adapter)


def add_weighted_adapter(
    model: EditedModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Add an adapter that makes the weighted sum of the edits of several.

    A weight of 1 merges, other weights scale, -1 negates. Interventions on different hidden states
    are all copied. Those on one hidden state become one with the sum of their ranks; they must
    edit orthogonal subspaces, except for the kinds without orthonormal directions. Unlike several
    active adapters, the new one costs no more than one, and can be saved and shared. It is not
    active yet.

    Args:
        adapters: The names of the adapters.
        weights: The weight of the edits of each.
        adapter_name: The new name: letters, digits, "_" and "-".

    Raises:
        ValueError: If edits cannot be scaled or joined, with the reason, or a weight is
            non-finite; nothing is changed.
        TypeError: If a weight is not a number.
    """
    names = list(adapters)
    model.adapter_set.require_known(names)
    given = read_weights(weights, len(names))
    if trained := [name for name in names if model.adapter_set[name].trained.names]:
        raise ValueError(
            f"the adapter {trained[0]!r} has trained a head, and heads cannot be added up."
        )
    parts = [model.adapter_set[name].config.representations for name in names]
    combined = combine(list(zip(parts, given, strict=True)))
    model.add_adapter(adapter_name, ReftConfig(representations=combined))


def set_adapter(
    model: EditedModel, adapter_name: str | Sequence[str], weights: Sequence[float] | None = None
) -> None:
    """Make these adapters active, and all others inactive.

    Each edit is computed from the original hidden state and multiplied by its weight; the edits
    are summed. Active adapters are trainable; the others are frozen.

    Args:
        adapter_name: A name, or several.
        weights: The factor of the edits of each; 1 by default.

    Raises:
        ValueError: If a name is unknown, a weight is non-finite, or two adapters have trained the
            same part of the base model; nothing is changed.
        TypeError: If a weight is not a number.
        RuntimeError: Inside `disable_adapter`, or after `unwrap`.
    """
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    model.adapter_set.require_known(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"set_adapter takes different names, and at least one, got {names}; for none use "
            "disable_adapter()."
        )
    given = read_weights([1.0] * len(names) if weights is None else weights, len(names))
    model.adapter_set.require_on()
    trained = [name for n in names for name in model.adapter_set[n].trained.tensors()]
    if shared := {name for name in trained if trained.count(name) > 1}:
        raise ValueError(
            f"{' and '.join(names)} have each trained {min(shared)} of the base model, and "
            "only one of them can be active."
        )
    model.adapter_set.activate(dict(zip(names, given, strict=True)))


def delete_adapter(model: EditedModel, adapter_name: str) -> None:
    """Remove an adapter. If no other is active, the first of the others becomes active.

    Raises:
        ValueError: If there is no such adapter, or it is the only one.
    """
    model.adapter_set.require_known([adapter_name])
    others = [name for name in model.adapter_set if name != adapter_name]
    if not others:
        raise ValueError(
            f"{adapter_name!r} is the only adapter: use unwrap() to get the base model back."
        )
    if adapter_name in model.adapter_set.active:
        remaining = {
            name: w for name, w in model.adapter_set.active.items() if name != adapter_name
        }
        model.set_adapter(list(remaining) or others[:1], list(remaining.values()) or None)
    model.adapter_set.remove(adapter_name)
