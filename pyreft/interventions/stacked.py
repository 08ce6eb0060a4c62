"""Several interventions in one pass: their weights stacked, one intervention for each row.

    h' = h + B^T (act(W h + b) - s (B h + c))      see `pyreft.interventions.forms`

G rows, P positions, D hidden size, R the largest rank; smaller ranks are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyreft.installed.modules import any_is_hooked
from pyreft.interventions.bases import FreeBasis, OrthonormalBasis
from pyreft.interventions.forms import Form, has_form, read_stacked
from pyreft.interventions.projection import OrthonormalProjection

_PARTS = (nn.Linear, OrthonormalProjection)


class StackedWeights(NamedTuple):
    """The weights of I interventions.

    Args:
        basis: (I, R, D), B.
        source: (I, R, D), W; A without an activation.
        bias: (I, R), b; a without an activation.
        projection: (I, R, D), s B; None without an activation.
        shift: (I, R), s c; None without an activation.
    """

    basis: Tensor
    source: Tensor
    bias: Tensor
    projection: Tensor | None = None
    shift: Tensor | None = None


class StackedInterventions:
    """Interventions with equal `stacks_with`, as one function of many rows.

    Args:
        interventions: The I interventions.
        keep: Whether their weights are stacked once and kept, as in generation; else they are
            stacked in every call, differentiably.
    """

    def __init__(self, interventions: Sequence[nn.Module], keep: bool = False) -> None:
        # Interventions of one shape are neighbours, so that they are stacked at once.
        ordered = sorted(map(_low_rank, dict.fromkeys(interventions)), key=_shape)
        self._groups = [list(group) for _, group in groupby(ordered, key=_shape)]
        self._index: dict[nn.Module, int] = {one: index for index, one in enumerate(ordered)}
        self._first = ordered[0]
        self._kept = self._stack() if keep else None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self._first.parameters()).dtype

    def index(self, intervention: nn.Module) -> int:
        """The index of an intervention in the stack."""
        return self._index[intervention]

    def __call__(self, hidden: Tensor, index: Tensor) -> Tensor:
        """Edit hidden states.

        Args:
            hidden: (G, P, D), in a type as wide as the weights.
            index: (G,), the intervention of each row.

        Returns:
            (G, P, D), edited.
        """
        first = self._first
        return edit_stacked(self.weights, hidden, index, first.act_fn, first.dropout)

    @property
    def weights(self) -> StackedWeights:
        """The weights of all, in the order of `index`."""
        return self._stack() if self._kept is None else self._kept

    def _stack(self) -> StackedWeights:
        rank = max(group[0].low_rank_dimension for group in self._groups)
        weights = [_weights(read_stacked(group, self.dtype)) for group in self._groups]
        joined = [torch.cat([_fill_up(w, rank) for w in ws]) for ws in zip(*weights, strict=True)]
        return StackedWeights(*joined)


def edit_stacked(
    weights: StackedWeights,
    hidden: Tensor,
    index: Tensor,
    act_fn: Callable[[Tensor], Tensor],
    dropout: Callable[[Tensor], Tensor],
) -> Tensor:
    """Edit hidden states by stacked weights.

    Args:
        weights: The weights of I interventions.
        hidden: (G, P, D), in a type as wide as the weights.
        index: (G,), the intervention of each row.
        act_fn: Their activation, which weights without `projection` do not need.
        dropout: Of the edit.

    Returns:
        (G, P, D), edited.
    """
    basis, source, bias = (w[index].to(hidden.dtype) for w in weights[:3])
    coefficients = torch.baddbmm(bias[:, None], hidden, source.mT)  # (G, P, R)
    if weights.projection is not None and weights.shift is not None:
        projection = weights.projection[index].to(hidden.dtype)
        shift = weights.shift[index].to(hidden.dtype)
        replaced = torch.baddbmm(shift[:, None], hidden, projection.mT)
        coefficients = act_fn(coefficients) - replaced
    edit: Tensor = dropout(torch.bmm(coefficients, basis))
    return hidden + edit


def stacks_with(intervention: nn.Module) -> tuple[object, ...] | None:
    """A key: interventions with equal keys can be stacked. None for one that runs by itself.

    A user's own module, a hooked or changed module, and one with parameters below float32 run by
    themselves.
    """
    if not has_form(intervention):
        return None
    assert isinstance(intervention, (OrthonormalBasis, FreeBasis))
    parts = list(intervention.modules())
    learned = [p for p in parts[1:] if next(p.parameters(recurse=False), None) is not None]
    if any(type(part) not in _PARTS for part in learned):
        return None
    if any("forward" in vars(part) for part in parts) or any_is_hooked(parts):
        return None
    types = {parameter.dtype for parameter in intervention.parameters()}
    if not types <= {torch.float32, torch.float64} or len(types) > 1:
        return None
    dropout = intervention.dropout.p if intervention.training else 0.0
    act_fn = None if intervention.act_fn_name == "linear" else intervention.act_fn_name
    return (intervention.embed_dim, act_fn, dropout, intervention.training, *types)


def _low_rank(intervention: nn.Module) -> OrthonormalBasis | FreeBasis:
    assert isinstance(intervention, (OrthonormalBasis, FreeBasis))
    return intervention


def _shape(module: OrthonormalBasis | FreeBasis) -> tuple[str, int, bool]:
    return (type(module).__name__, module.low_rank_dimension, module.add_bias)


def _weights(form: Form) -> tuple[Tensor, ...]:
    """The fields of `StackedWeights`."""
    if form.act_fn is None:
        return form.basis, form.net_weight, form.net_bias
    return form.basis, form.linear_weight, form.bias, form.projection, form.linear_shift


def _fill_up(weights: Tensor, rank: int) -> Tensor:
    """Pad ranks to R with zeros: (I, r, D) -> (I, R, D), (I, r) -> (I, R)."""
    beyond = (0, 0) * (weights.dim() - 2)
    return functional.pad(weights, (*beyond, 0, rank - weights.shape[1]))
