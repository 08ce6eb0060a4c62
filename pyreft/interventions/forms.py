"""What a low-rank kind computes, as the matrices of one formula; and back.

    h' = h + B^T (act(W h + b) - s (B h + c))      s is 1 where the edit replaces B h, else 0

Without an activation that is B^T (A h + a), with A = W - s B and a = b - s c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.bases import OrthonormalBasis
from pyreft.interventions.kinds.consreft import ConsreftIntervention
from pyreft.interventions.kinds.direft import DireftIntervention
from pyreft.interventions.kinds.lobireft import LobireftIntervention
from pyreft.interventions.kinds.loreft import LoreftIntervention
from pyreft.interventions.kinds.nodireft import NodireftIntervention
from pyreft.interventions.kinds.noreft import NoreftIntervention
from pyreft.interventions.projection import turned_factor

# (orthonormal, replaces the projection, learns a constant) -> the kind that is made of a form
_MADE = {
    (issubclass(cls, OrthonormalBasis), cls.replaces_projection, cls.constant_source): cls
    for cls in (
        LoreftIntervention,
        NoreftIntervention,
        DireftIntervention,
        NodireftIntervention,
        ConsreftIntervention,
        LobireftIntervention,
    )
}
# Scripts replace it on a class of ours.
_FORWARD = LowRankIntervention.forward


@dataclass(frozen=True)
class Form:
    """What one intervention computes; or several, their tensors stacked along a first axis I.

    Args:
        basis: B, (R, D).
        weight: W, (R, D); None of a constant source.
        bias: b, (R,).
        shift: c, (R,); None if there is none, as of all that replaces nothing.
        replaces: s.
        orthonormal: Whether the rows of B are orthonormal by construction.
        act_fn: Name of the activation, None if it does nothing.
        dropout, dtype: Of the module, the latter of its learned source, whatever that of the
            tensors here.
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
        """W, zero of a constant source."""
        return torch.zeros_like(self.basis) if self.weight is None else self.weight

    @property
    def linear_shift(self) -> Tensor:
        """c, zero if there is none."""
        return torch.zeros_like(self.bias) if self.shift is None else self.shift

    @property
    def projection(self) -> Tensor:
        """s B."""
        return self.basis if self.replaces else torch.zeros_like(self.basis)

    @property
    def net_weight(self) -> Tensor:
        """A."""
        return self.linear_weight - self.projection

    @property
    def net_bias(self) -> Tensor:
        """a."""
        return self.bias - self.linear_shift

    def at(self, index: int | list[int]) -> Form:
        """Along the first axis: one of several interventions, or some directions of one."""
        return replace(
            self,
            basis=self.basis[index],
            weight=None if self.weight is None else self.weight[index],
            bias=self.bias[index],
            shift=None if self.shift is None else self.shift[index],
        )


def has_form(intervention: nn.Module) -> bool:
    """Whether a module computes the formula, as its class itself says; a subclass may not."""
    cls = type(intervention)
    if not issubclass(cls, LowRankIntervention):
        return False
    return bool(vars(cls).get("of_one_formula")) and cls.forward is _FORWARD


@torch.no_grad()
def read_form(intervention: nn.Module) -> Form:
    """What a module computes, in float64.

    Raises:
        ValueError: If its class does not say that it computes the formula.
    """
    if not has_form(intervention):
        names = ", ".join(cls.__name__ for cls in _MADE.values())
        raise ValueError(
            f"arithmetic is for {names}; what {type(intervention).__name__} computes is not known."
        )
    return read_stacked([intervention], torch.float64).at(0)


def read_stacked(interventions: Sequence[Any], dtype: torch.dtype) -> Form:
    """What I interventions of one kind, rank and activation compute; gradients reach them.

    Args:
        interventions: The interventions.
        dtype: Type of the tensors, in which directions are made orthonormal as well.
    """
    first = interventions[0]

    def stack(name: str) -> Tensor:
        read = attrgetter(name)
        return torch.stack([read(one) for one in interventions]).to(dtype)

    orthonormal = isinstance(first, OrthonormalBasis)
    if orthonormal:
        basis = turned_factor(stack("rotate_layer.original"), stack("rotate_layer.turn")).mT
    else:
        basis = stack("proj_layer.weight")
    shifted = not orthonormal and first.proj_layer.bias is not None
    source, constant = first.learned_source, first.constant_source
    return Form(
        basis=basis,
        weight=None if constant else stack("learned_source.weight"),
        bias=stack("learned_source" if constant else "learned_source.bias"),
        shift=stack("proj_layer.bias") if shifted else None,
        replaces=first.replaces_projection,
        orthonormal=orthonormal,
        act_fn=None if first.act_fn_name == "linear" else first.act_fn_name,
        dropout=first.dropout.p,
        dtype=(source if constant else source.weight).dtype,
    )


@torch.no_grad()
def make_module(form: Form, like: nn.Module) -> nn.Module:
    """A module of the kind that computes it, on the device of another and in its mode."""
    rank, width = form.basis.shape
    cls = _MADE[form.orthonormal, form.replaces, form.weight is None and form.orthonormal]
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
