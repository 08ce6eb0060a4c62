"""Interventions scaled, negated, joined, and split: each result is an intervention again.

The edit of every kind is B^T (act(W h + b) - s (B h + c)). s = 1 in the kinds that replace the
projection of the hidden state on the subspace of B, s = 0 in those that add to it. Without an
activation the edit is linear in h, and the arithmetic is exact:

    scale    f B^T (W h + b - s (B h + c))  =  B^T (W' h + b' - s (B h + c))
             W' = f W + s (1 - f) B,  b' = f b + s (1 - f) c
    join     B_1^T (...) + B_2^T (...): the rows of B, W, b, c below each other
    select   some of those rows

It is computed in float64. An operation that is not exact is refused.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyreft.interventions.forms import Form, make_module, read_form
from pyreft.interventions.projection import orthonormal_factor

# Directions with a cosine up to this count as orthogonal: rounding in float32.
TOLERANCE = 1e-5


def scale(intervention: nn.Module, factor: float) -> nn.Module:
    """An intervention whose edit is multiplied by `factor`; -1 negates it.

    An intervention with an activation cannot be scaled if it replaces the projection (LoReFT,
    NoReFT). If it adds its edit, the directions are scaled instead, P' = f P: a DiReFT with an
    activation becomes a NodiReFT. A ConsReFT becomes a LoReFT, W' = (1 - f) R.

    Args:
        intervention: One of the six kinds, or any module if the factor is 1. It is not changed.
        factor: A finite number.

    Raises:
        ValueError: If no intervention has that edit.
    """
    if (
        isinstance(factor, bool)
        or not isinstance(factor, (int, float))
        or not math.isfinite(factor)
    ):
        raise ValueError(f"an intervention is scaled by a number, got {factor!r}.")
    if factor == 1:
        return copy.deepcopy(intervention)
    form = read_form(intervention)
    dtype = torch.promote_types(form.dtype, torch.float32)
    if form.act_fn is not None:
        if form.replaces:
            raise ValueError(
                f"{type(intervention).__name__} with act_fn={form.act_fn!r} cannot be scaled by "
                f"{factor}: no weights make act(W h + b) - B h that many times as large. Without "
                "an activation, or of the kinds direft and nodireft, it can."
            )
        scaled = replace(form, basis=factor * form.basis, orthonormal=False)
    else:
        rest = (1 - factor) * form.replaces
        weight, shift = form.linear_weight, form.linear_shift
        scaled = replace(
            form,
            # A constant that replaces nothing stays a constant.
            weight=form.weight
            if rest == 0 and form.weight is None
            else factor * weight + rest * form.basis,
            bias=factor * form.bias + rest * shift,
        )
    return make_module(replace(scaled, dtype=dtype), intervention)


def join(interventions: Sequence[nn.Module]) -> nn.Module:
    """One intervention whose edit is the sum of the edits of several; their ranks add up.

    Args:
        interventions: Of the six kinds, for one width. Those of different kinds must be without
            an activation. The subspace that a LoReFT or ConsReFT replaces must be orthogonal to
            all others, up to `TOLERANCE`. The result has their dropout if all have the same, else
            none: dropout affects only training.

    Raises:
        ValueError: If no intervention has that edit, or one edits what another replaces.
    """
    forms = [read_form(one) for one in interventions]
    if not forms or len({form.basis.shape[1] for form in forms}) > 1:
        widths = [form.basis.shape[1] for form in forms]
        raise ValueError(f"interventions of one width can be joined, got the widths {widths}.")
    rank, width = sum(len(form.basis) for form in forms), forms[0].basis.shape[1]
    if rank > width:
        raise ValueError(f"the ranks add up to {rank}, which is more than the width {width}.")
    overlap = _require_disjoint(forms)
    if len({form.act_fn for form in forms}) > 1 or len({form.replaces for form in forms}) > 1:
        forms = [_adding(form) for form in forms]
    constant = all(form.weight is None for form in forms)
    shifted = any(form.shift is not None for form in forms)
    dropouts = {form.dropout for form in forms}
    joined = Form(
        basis=torch.cat([form.basis for form in forms]),
        weight=None if constant else torch.cat([form.linear_weight for form in forms]),
        bias=torch.cat([form.bias for form in forms]),
        shift=torch.cat([form.linear_shift for form in forms]) if shifted else None,
        replaces=forms[0].replaces,
        orthonormal=all(form.orthonormal for form in forms) and overlap <= TOLERANCE,
        act_fn=forms[0].act_fn,
        dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        dtype=functools.reduce(torch.promote_types, [form.dtype for form in forms]),
    )
    return make_module(joined, interventions[0])


def select_directions(intervention: nn.Module, directions: Sequence[int]) -> nn.Module:
    """An intervention of lower rank, with the edit that another has with `subspaces=directions`.

    It splits a LoReFT whose directions were trained for different tasks, as in upstream's example
    of composition; `join` is the inverse.

    Args:
        intervention: One of the six kinds. It is not changed.
        directions: Different indices below its rank.

    Raises:
        ValueError: If they are not such indices.
    """
    form = read_form(intervention)
    rank, chosen = len(form.basis), list(directions)
    if any(type(index) is not int or not 0 <= index < rank for index in chosen):
        raise ValueError(f"directions are indices from 0 to {rank - 1}, got {chosen}.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"directions must be different, and at least one, got {chosen}.")
    return make_module(form.at(chosen), intervention)


def _adding(form: Form) -> Form:
    """The same edit in a form that adds: A replaces W, a replaces b."""
    if form.act_fn is not None:
        raise ValueError(
            f"an intervention with act_fn={form.act_fn!r} can only be joined with others of its "
            "kind and activation: one module has one activation."
        )
    if not form.replaces:
        return form
    return replace(form, weight=form.net_weight, bias=form.net_bias, shift=None, replaces=False)


def _require_disjoint(forms: Sequence[Form]) -> float:
    """The largest cosine between directions of two forms.

    Raises:
        ValueError: If one edits what another replaces.
    """
    largest = 0.0
    for index, one in enumerate(forms):
        for earlier, other in enumerate(forms[:index]):
            overlap = _cosine(one.basis, other.basis)
            largest = max(largest, overlap)
            alone = any(form.replaces and form.orthonormal for form in (one, other))
            if alone and overlap > TOLERANCE:
                raise ValueError(
                    f"interventions {earlier} and {index} use subspaces that overlap: the cosine "
                    f"of the angle between them is {overlap:.2g}, and {TOLERANCE} counts as none. "
                    "What one of them replaces, the other would change."
                )
    return largest


def _cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of the smallest angle between two row spaces."""
    bases = [orthonormal_factor(rows.mT) for rows in (one, other)]
    return float(torch.linalg.matrix_norm(bases[0].mT @ bases[1], ord=2))
