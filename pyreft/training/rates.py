"""Learning rates by role: R, W and b of an intervention want different ones.

    role   parameter                              of
    R      `rotate_layer.turn`                    orthonormal kinds
    P      `proj_layer.weight`, `proj_layer.bias` free kinds
    W      `learned_source.weight`                kinds that map the hidden state
    b      `learned_source.bias`, or the constant all

A kind says which of its parameters are what (`LowRankIntervention.roles`). What has no role, as
a head that is trained with the interventions, keeps the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

ROLES = ("R", "P", "W", "b")

# A group of a torch optimizer: its `params`, and their settings by name.
ParameterGroup: TypeAlias = dict[str, Any]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    ratios: Mapping[str, float],
    weight_decay: float = 0.0,
) -> list[ParameterGroup]:
    """Parameter groups for any torch optimizer, one for each role and for what has none.

        torch.optim.AdamW(pyreft.parameter_groups(model, 1e-3, {"R": 4, "b": 10}))

    Args:
        model: A `ReftModel`, or any module that contains interventions.
        learning_rate: The rate of what has no ratio.
        ratios: Role -> how many times the rate; "R", "P", "W", "b".
        weight_decay: Of matrices alone; not of biases, and not of a trained constant, which the
            transformers Trainer decays.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, `role` and `ratio`; only parameters that
        require a gradient.

    Raises:
        ValueError: If a rate or a ratio is not positive and finite, or no trained parameter has a
            role that a ratio is given for.
    """
    if not _is_positive(learning_rate):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate!r}.")
    if not (_is_positive(weight_decay) or weight_decay == 0):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay!r}.")
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays[parameter.dim() > 1 and not name.endswith("bias")].append(parameter)
    groups = [
        {"params": params, "lr": float(learning_rate), "weight_decay": weight_decay * decay}
        for decay, params in decays.items()
    ]
    return _split(groups, model, ratios)


def split_groups(optimizer: Optimizer, model: nn.Module, ratios: Mapping[str, float]) -> None:
    """Split the groups of an optimizer that has taken no step by role.

    Args:
        optimizer: With one learning rate.
        model, ratios: As for `parameter_groups`.

    Raises:
        ValueError: As `parameter_groups`.
    """
    optimizer.param_groups[:] = _split(optimizer.param_groups, model, ratios)


def require_ratios(
    model: nn.Module, optimizer: Optimizer | None, ratios: Mapping[str, float]
) -> None:
    """Raise ValueError for ratios that a trainer cannot apply, before its run begins.

    Args:
        model, ratios: As for `parameter_groups`.
        optimizer: The one that was passed to the trainer, if any.
    """
    if optimizer is not None:
        raise ValueError(
            "learning_rate_ratios apply to the Trainer's own optimizer, and `optimizers` was "
            "passed: build that one with pyreft.parameter_groups(model, learning_rate, ratios)."
        )
    parameter_groups(model, 1.0, ratios)


def _check_ratios(ratios: Mapping[str, float]) -> None:
    """Raise ValueError unless ratios are roles with positive, finite numbers."""
    if not isinstance(ratios, Mapping):
        raise ValueError(
            f'ratios are a role and a number each, such as {{"R": 4.0}}; got {ratios!r}.'
        )
    for role, ratio in ratios.items():
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; known: {', '.join(ROLES)}.")
        if not _is_positive(ratio):
            raise ValueError(f"the ratio of {role} must be positive and finite, got {ratio!r}.")


def require_same_groups(ours: Iterable[ParameterGroup], saved: Iterable[ParameterGroup]) -> None:
    """Raise ValueError unless the groups of an optimizer are those of a saved one."""
    kept, now = _describe(saved), _describe(ours)
    if kept != now:
        raise ValueError(
            f"the checkpoint was saved with the parameter groups {kept}, this run has {now}: "
            "resume with the optimizer, the learning_rate_ratios and the trainable parameters "
            "that the run was started with."
        )


def _split(
    groups: Iterable[ParameterGroup], model: nn.Module, ratios: Mapping[str, float]
) -> list[ParameterGroup]:
    _check_ratios(ratios)
    roles, split = _roles(model), []
    for group in groups:
        for role in (*ROLES, None):
            params = [p for p in group["params"] if roles.get(id(p)) == role]
            ratio = float(ratios.get(role, 1.0)) if role else 1.0
            if params:
                rate = group["lr"] * ratio
                split.append({**group, "params": params, "lr": rate, "role": role, "ratio": ratio})
    found = {group["role"] for group in split}
    if absent := [role for role in ratios if role not in found]:
        there = ", ".join(role for role in ROLES if role in found) or "no role at all"
        raise ValueError(
            f"no trained parameter has the role {absent[0]}: those of this model have {there}."
        )
    return split


def _roles(model: nn.Module) -> dict[int, str]:
    """The role of each parameter that has one, by its id."""
    found: dict[int, str] = {}
    for module in model.modules():
        if not callable(say := getattr(module, "roles", None)):
            continue
        parameters, said = dict(module.named_parameters()), say()
        for name, role in said.items() if isinstance(said, Mapping) else [(repr(said), None)]:
            if name not in parameters or role not in ROLES:
                raise ValueError(
                    f"{type(module).__name__}.roles() must return a role ({', '.join(ROLES)}) for "
                    f"names of its parameters ({', '.join(parameters)}); got {name!r}: {role!r}."
                )
            found[id(parameters[name])] = role
    return found


def _describe(groups: Iterable[ParameterGroup]) -> str:
    """The roles with their ratios, and how many parameters each group has."""
    return ", ".join(
        f"{group.get('role') or 'rest'} x {group.get('ratio', 1.0):g} ({len(group['params'])})"
        for group in groups
    )


def _is_positive(number: object) -> bool:
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    return math.isfinite(number) and float(number) > 0
