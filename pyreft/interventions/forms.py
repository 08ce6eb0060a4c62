"""What each of the six kinds computes, as the matrices of one formula; and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.kinds import (
    ConsreftIntervention,
    DireftIntervention,
    LobireftIntervention,
    LoreftIntervention,
    NodireftIntervention,
    NoreftIntervention,
)
from pyreft.interventions.projection import orthonormal_factor

# (orthonormal, replaces the projection, learns a constant) -> kind
_KINDS: dict[tuple[bool, bool, bool], type[LowRankIntervention]] = {
    (True, True, False): LoreftIntervention,
    (True, True, True): ConsreftIntervention,
    (True, False, False): DireftIntervention,
    (True, False, True): LobireftIntervention,
    (False, True, False): NoreftIntervention,
    (False, False, False): NodireftIntervention,
}


@dataclass(frozen=True)
class Form:
    """The edit B^T (act(W h + b) - s (B h + c)), in float64.

    Args:
        basis: B, (R, D).
        weight: W, (R, D); None of a constant source.
        bias: b, (R,).
        shift: c, (R,); None if there is none.
        replaces: s.
        orthonormal: Whether the rows of B are orthonormal by construction.
        act_fn: Name of the activation, None if it does nothing.
        dropout, dtype: Of the module, the latter of its learned source.
    """

    basis: Tensor
    weight: Tensor | None
    bias: Tensor
    shift: Tensor | None
    replaces: bool
    orthonormal: bool
    act_fn: str | None
    dropout: float
    dtype: torch.dtype

    @property
    def linear_weight(self) -> Tensor:
        return torch.zeros_like(self.basis) if self.weight is None else self.weight

    @property
    def linear_shift(self) -> Tensor:
        return torch.zeros_like(self.bias) if self.shift is None else self.shift


def read_form(intervention: nn.Module) -> Form:
    """What a module computes.

    Raises:
        ValueError: If it is none of the six kinds: another class may compute anything.
    """
    if type(intervention) not in _KINDS.values():
        names = ", ".join(kind.__name__ for kind in _KINDS.values())
        raise ValueError(
            f"arithmetic is for {names}; what {type(intervention).__name__} computes is not known."
        )
    module: Any = intervention
    source, shift = module.learned_source, None
    orthonormal = not isinstance(module, (NoreftIntervention, NodireftIntervention))
    if orthonormal:
        basis = orthonormal_factor(module.rotate_layer.original.detach().double()).mT
    else:
        basis, shift = module.proj_layer.weight, module.proj_layer.bias
    constant = module.constant_source
    return Form(
        basis=basis.detach().double(),
        weight=None if constant else source.weight.detach().double(),
        bias=(source if constant else source.bias).detach().double(),
        shift=None if shift is None else shift.detach().double(),
        replaces=module.replaces_projection,
        orthonormal=orthonormal,
        act_fn=None if module.act_fn_name == "linear" else module.act_fn_name,
        dropout=module.dropout.p,
        dtype=(source if constant else source.weight).dtype,
    )


@torch.no_grad()
def make_module(form: Form, like: nn.Module) -> nn.Module:
    """A module of the kind that computes it, on the device of another and in its mode."""
    rank, width = form.basis.shape
    cls = _KINDS[form.orthonormal, form.replaces, form.weight is None and form.orthonormal]
    # Its first values are random, and nobody sees them.
    with torch.random.fork_rng(devices=[]):
        made: Any = cls(
            embed_dim=width,
            low_rank_dimension=rank,
            dropout=form.dropout,
            act_fn=form.act_fn,
            dtype=form.dtype,
            add_bias=form.shift is not None,
        )
    if form.orthonormal:
        made.rotate_layer.weight = form.basis.mT
    else:
        made.proj_layer.weight.copy_(form.basis)
        if form.shift is not None:
            made.proj_layer.bias.copy_(form.shift)
    if cls.constant_source:
        made.learned_source.copy_(form.bias)
    else:
        made.learned_source.weight.copy_(form.linear_weight)
        made.learned_source.bias.copy_(form.bias)
    made.to(form.basis.device).train(like.training)
    return made
