"""The base class of the low-rank kinds: a module, hidden state -> edited hidden state."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor, nn

from pyreft.interventions.upstream import UpstreamInterventionMixin, refuse_unknown

if TYPE_CHECKING:
    from pyreft.annotations import Json

Subspaces = Sequence[Sequence[int]] | Sequence[int]
_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_ARGUMENTS = ["embed_dim", "low_rank_dimension", "dropout", "act_fn", "dtype", "add_bias", "device"]


class LowRankIntervention(UpstreamInterventionMixin):
    """Add an edit in a subspace of R dimensions: h' = h + B^T c(h).

    A kind defines the rows B of the subspace (`basis`) and the coefficients c of the edit
    (`coefficients`). The edit is computed and added in the wider type of parameters and hidden
    state, with autocast off: one cast in, one out.

    Args:
        embed_dim: Width D of the edited component, in features.
        low_rank_dimension: Rank R of the subspace, 1 <= R <= D.
        dropout: Probability of dropping an entry of the edit, in [0, 1). Upstream drops the
            whole hidden state instead, which is a defect.
        act_fn: Name of a transformers activation applied to the learned source, or None.
        dtype: Type of the parameters. Upstream's default is bfloat16; ours is float32, which
            works with every base model. A type below float32 is used for the learned maps alone;
            an orthonormal projection stays float32.
        add_bias: Whether the free projection of NoReFT has a bias of its own.
        device: Device of the parameters.
        **extra: Upstream's arguments without effect, such as `init_orth=True`, and those that a
            subclass passes on.

    Shape:
        base: (..., D), any float type -> same shape and type.

    Raises:
        ValueError: If a rank or probability is out of range or the activation is unknown.
        TypeError: If an argument is unknown.
    """

    # Whether this class itself, not a subclass, computes the formula of `forms` with these flags.
    of_one_formula = False
    constant_source = False
    # Whether the edit replaces the projection of the hidden state, or is added to it.
    replaces_projection = False
    # The source of the coefficients: a linear map of the hidden state, or a constant.
    learned_source: Any

    def __init__(
        self,
        embed_dim: int,
        low_rank_dimension: int,
        dropout: float = 0.0,
        act_fn: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        add_bias: bool = False,
        device: torch.device | str | None = None,
        **extra: object,
    ) -> None:
        nn.Module.__init__(self)
        inherited = type(self).__init__.__module__.rpartition(".")[0] == __package__
        refuse_unknown(type(self), extra, _ARGUMENTS, strict=inherited)
        _check_rank(embed_dim, low_rank_dimension)
        if not _is_number(dropout) or not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}.")
        if self.constant_source and act_fn not in (None, "linear"):
            raise ValueError(f"{type(self).__name__} trains a constant; it takes no act_fn.")
        activation = _find_activation(act_fn)
        if not isinstance(add_bias, bool):
            raise ValueError(f"add_bias must be true or false, got {add_bias!r}.")
        self.embed_dim = self.interchange_dim = int(embed_dim)
        self.low_rank_dimension = int(low_rank_dimension)
        self.dtype = _as_dtype(dtype)
        self.add_bias = add_bias
        self.act_fn_name = act_fn
        self.act_fn = activation.to(self.dtype)
        # In a tuple, so that it is no module of this one.
        self._named = (self.act_fn,)
        self.dropout = nn.Dropout(dropout)

    @property
    def act_fn_is_named(self) -> bool:
        """Whether `act_fn` is what the constructor made, and no module that replaced it."""
        return self.act_fn is self._named[0]

    def get_config(self) -> Json:
        """Every constructor argument, as JSON values.

        Raises:
            ValueError: If `act_fn` was replaced by a module, which has no name.
        """
        if not self.act_fn_is_named:
            raise ValueError(
                f"act_fn={self.act_fn_name!r} was replaced by {self.act_fn!r}, which has no name"
            )
        return {
            "embed_dim": self.embed_dim,
            "low_rank_dimension": self.low_rank_dimension,
            "dropout": self.dropout.p,
            "act_fn": self.act_fn_name,
            "dtype": str(self._stored_type()).removeprefix("torch."),
            "add_bias": self.add_bias,
        }

    def roles(self) -> dict[str, str]:
        """The symbol of each parameter in the formula, "R", "P", "W" or "b", by its name."""
        names = {
            "rotate_layer.turn": "R",
            "proj_layer.weight": "P",
            "proj_layer.bias": "P",
            "learned_source.weight": "W",
            "learned_source.bias": "b",
            "learned_source": "b",
        }
        return {name: names[name] for name, _ in self.named_parameters() if name in names}

    def _stored_type(self) -> torch.dtype:
        """The type of the learned source, which `.to(...)` may have changed."""
        learned = [p for name, p in self.named_parameters() if name.startswith("learned_source")]
        return learned[0].dtype if learned else self.dtype

    def basis(self) -> Tensor:
        """The directions that are edited, (R, D)."""
        raise NotImplementedError

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        """The coefficient of each direction: (..., D), (R, D) -> (..., R)."""
        raise NotImplementedError

    @torch.no_grad()
    def edit_nothing(self) -> None:
        """Set the learned source so that the edit is zero, up to rounding.

        Training then begins at the base model, which is the reference of preference tuning. A new
        intervention is random, as in the paper.

        Raises:
            ValueError: If the edit is zero for no source: ConsReFT, and some activations.
        """
        linear = self.act_fn_name in (None, "linear")
        if self.replaces_projection and (self.constant_source or not linear):
            raise ValueError(
                f"no source of {type(self).__name__} with act_fn={self.act_fn_name!r} equals the "
                "projection of every hidden state, so it cannot edit nothing: use loreft or direft "
                "without an activation."
            )
        if self.act_fn(torch.zeros(1, dtype=self.dtype)).any():
            raise ValueError(f"act_fn={self.act_fn_name!r} is not zero at zero: use another.")
        for parameter in (
            [self.learned_source] if self.constant_source else self.learned_source.parameters()
        ):
            parameter.zero_()
        if self.replaces_projection:
            self.learned_source.weight.copy_(self.basis())

    def forward(
        self, base: Tensor, source: Tensor | None = None, subspaces: Subspaces | None = None
    ) -> Tensor:
        """Edit hidden states.

        Args:
            base: (..., D); (B, P, D) if `subspaces` differ between examples.
            source: Not used; upstream's signature.
            subspaces: Directions to edit, the others being left alone: indices below R for all
                examples, or one list of them for each example.

        Returns:
            The edited hidden states, of the shape and type of `base`.

        Raises:
            ValueError: If an index is out of range, or there is not one list for each example.
        """
        with torch.autocast(base.device.type, enabled=False):
            basis = self.basis()
            widest = torch.promote_types(base.dtype, basis.dtype)
            basis, hidden = basis.to(widest), base.to(widest)
            coefficients = self.coefficients(hidden, basis)
            if subspaces is not None:
                chosen = _subspace_mask(subspaces, coefficients)
                coefficients = coefficients.masked_fill(~chosen, 0.0)
            edit: Tensor = self.dropout(coefficients @ basis)
            return (hidden + edit).to(base.dtype)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, low_rank_dimension={self.low_rank_dimension}"


def _check_rank(embed_dim: int, rank: int) -> None:
    if not _is_index(embed_dim):
        raise ValueError(f"embed_dim must be a width in features, got {embed_dim!r}.")
    if not _is_index(rank) or not 1 <= rank <= embed_dim:
        raise ValueError(
            f"low_rank_dimension must be from 1 to embed_dim, which is {embed_dim}; got {rank!r}."
        )


def _is_index(number: SupportsIndex) -> bool:
    """Whether it is an integer of Python, numpy or torch."""
    if isinstance(number, bool):
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def _is_number(number: object) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool)


def _find_activation(name: str | None) -> nn.Module:
    if name in (None, "linear"):
        return nn.Identity()
    # Imported here, because importing transformers takes longer than reading an adapter.
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"unknown act_fn {name!r}; one of {', '.join(sorted(ACT2FN))}.")
    found: nn.Module = ACT2FN[name]
    return found


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = _TYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in _TYPES.values():
        raise ValueError(
            f"dtype must be a floating point type such as float32, got {dtype!r}; there are also "
            "float64, bfloat16 and float16."
        )
    return found  # type: ignore[return-value]


def _subspace_mask(subspaces: Subspaces, coefficients: Tensor) -> Tensor:
    """(R,) for one list of indices, (B, 1, R) for one list per example."""
    rank = coefficients.shape[-1]
    each = [one for one in subspaces if isinstance(one, (list, tuple))]
    shared = not subspaces or len(each) < len(subspaces)
    rows: Sequence[Sequence[object]] = [subspaces] if shared else each
    mask = torch.zeros(len(rows), rank, dtype=torch.bool)
    for row, indices in enumerate(rows):
        if any(type(index) is not int or not 0 <= index < rank for index in indices):
            raise ValueError(
                f"subspaces must be indices from 0 to {rank - 1}, got {list(indices)}."
            )
        mask[row, list(indices)] = True
    if shared:
        return mask[0].to(coefficients.device)
    if coefficients.dim() < 2 or coefficients.shape[0] != len(rows):
        raise ValueError(
            f"subspaces are given for {len(rows)} examples, the hidden state has shape "
            f"{tuple(coefficients.shape[:-1])}."
        )
    mask = mask.view(len(rows), *[1] * (coefficients.dim() - 2), rank)
    return mask.to(coefficients.device)
