"""A low-rank kind as the matrices of one formula, and back.

    h' = h + B^T (act(W h + b) - s (B h + c))      s is 1 if the edit replaces B h, else 0

Without an activation that is B^T (A h + a), with A = W - s B and a = b - s c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.bases import FreeBasis, OrthonormalBasis
from pyreft.interventions.projection import turned_factor
from pyreft.interventions.registry import built_in_kinds

# Scripts may replace `forward` of a class of ours.
_FORWARD = LowRankIntervention.forward


@dataclass(frozen=True)
class Form:
    """The formula of one intervention; or of several, their tensors stacked along a first axis I.

    Args:
        basis: B, (R, D).
        weight: W, (R, D); None for a constant source.
        bias: b, (R,).
        shift: c, (R,); None without a bias of the projection, and if nothing is replaced.
        replaces: s.
        orthonormal: Whether the rows of B are orthonormal by construction.
        act_fn: Name of the activation, None for the identity.
        dropout: Probability of dropping an entry of the edit.
        dtype: Type of the learned source; the tensors here may have another.
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
        """W, zero for a constant source."""
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
        """Index the first axis: one of several interventions, or some directions of one."""
        return replace(
            self,
            basis=self.basis[index],
            weight=None if self.weight is None else self.weight[index],
            bias=self.bias[index],
            shift=None if self.shift is None else self.shift[index],
        )


def has_form(intervention: nn.Module) -> bool:
    """Whether the class of a module itself declares that it computes the formula.

    A module whose `act_fn` was replaced computes something else.
    """
    cls = type(intervention)
    if not isinstance(intervention, LowRankIntervention) or not intervention.act_fn_is_named:
        return False
    return bool(vars(cls).get("of_one_formula")) and cls.forward is _FORWARD


@torch.no_grad()
def read_form(intervention: nn.Module) -> Form:
    """The form of a module, in float64.

    Raises:
        ValueError: If its class does not declare that it computes the formula.
    """
    if not has_form(intervention):
        names = ", ".join(cls.__name__ for cls in _kinds_by_form().values())
        raise ValueError(
            f"arithmetic is for {names}; what {type(intervention).__name__} computes is not known."
        )
    assert isinstance(intervention, (OrthonormalBasis, FreeBasis))
    return read_stacked([intervention], torch.float64).at(0)


def read_stacked(interventions: Sequence[OrthonormalBasis | FreeBasis], dtype: torch.dtype) -> Form:
    """The stacked form of I interventions of one kind, rank and activation; differentiable.

    Args:
        interventions: The interventions.
        dtype: Type of the tensors, in which orthonormal directions are computed as well.
    """
    first = interventions[0]

    def stack(name: str) -> Tensor:
        read = attrgetter(name)
        return torch.stack([read(one) for one in interventions]).to(dtype)

    if isinstance(first, OrthonormalBasis):
        basis = turned_factor(stack("rotate_layer.original"), stack("rotate_layer.turn")).mT
        shifted = False
    else:
        basis = stack("proj_layer.weight")
        shifted = first.proj_layer.bias is not None
    source, constant = first.learned_source, first.constant_source
    return Form(
        basis=basis,
        weight=None if constant else stack("learned_source.weight"),
        bias=stack("learned_source" if constant else "learned_source.bias"),
        shift=stack("proj_layer.bias") if shifted else None,
        replaces=first.replaces_projection,
        orthonormal=isinstance(first, OrthonormalBasis),
        act_fn=None if first.act_fn_name == "linear" else first.act_fn_name,
        dropout=first.dropout.p,
        dtype=(source if constant else source.weight).dtype,
    )


@torch.no_grad()
def make_module(form: Form, like: nn.Module) -> nn.Module:
    """A module with this form, on the form's device, in training mode if `like` is."""
    rank, width = form.basis.shape
    constant = form.weight is None and form.orthonormal
    cls = _kinds_by_form()[form.orthonormal, form.replaces, constant]
    # The random initial values are replaced, so the random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        made = cls(
            embed_dim=width,
            low_rank_dimension=rank,
            dropout=form.dropout,
            act_fn=form.act_fn,
            dtype=form.dtype,
            add_bias=form.shift is not None,
        )
    if isinstance(made, OrthonormalBasis):
        made.rotate_layer.weight = form.basis.mT
    elif isinstance(made, FreeBasis):
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


def _kinds_by_form() -> dict[tuple[bool, bool, bool], type[LowRankIntervention]]:
    """Built-in kinds by (orthonormal, replaces the projection, has a constant source)."""
    return {
        (issubclass(cls, OrthonormalBasis), cls.replaces_projection, cls.constant_source): cls
        for cls in built_in_kinds().values()
        if issubclass(cls, LowRankIntervention) and vars(cls).get("of_one_formula")
    }
