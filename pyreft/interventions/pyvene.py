"""pyvene's classes of interventions: its own if it is installed, else equivalents.

Scripts derive their own interventions from these, imported from `pyreft.interventions`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.upstream import UpstreamInterventionMixin


def find_class(name: str) -> type[nn.Module]:
    """pyvene's class of a name, or our equivalent; upstream's LowRankRotateLayer is always ours."""
    if name in NAMES and importlib.util.find_spec("pyvene") is not None:
        found: type[nn.Module] = getattr(importlib.import_module("pyvene"), name)
        return found
    return {cls.__name__: cls for cls in (*_OURS, LowRankRotateLayer)}[name]


class LowRankRotateLayer(nn.Module):
    """R^T as an unconstrained matrix, x -> x R^T, which starts orthonormal; upstream's module.

    `torch.nn.utils.parametrizations.orthogonal` keeps it so. The built-in kinds use
    `pyreft.interventions.OrthonormalProjection`.

    Args:
        n: D, the width of the input.
        m: R, the number of directions.
        init_orth: Whether it starts orthonormal; if not, it is uninitialized.

    Shape:
        x: (..., D) -> (..., R), in the type of the weight.
    """

    def __init__(self, n: int, m: int, init_orth: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(int(n), int(m)))
        if init_orth:
            nn.init.orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight


class Intervention(UpstreamInterventionMixin):
    """The base class of pyvene's interventions.

    Args:
        **kwargs: `embed_dim`, the edited width; others are for subclasses.

    Attributes:
        embed_dim, interchange_dim: The width, as buffers, which are saved like pyvene's.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.keep_last_dim = kwargs.get("keep_last_dim", False)
        self.use_fast = kwargs.get("use_fast", False)
        self.subspace_partition = kwargs.get("subspace_partition")
        width = kwargs.get("embed_dim")
        for name in ("embed_dim", "interchange_dim"):
            self.register_buffer(name, None if width is None else torch.tensor(int(width)))

    def set_interchange_dim(self, interchange_dim: Tensor | int) -> None:
        """Set the edited width."""
        self.interchange_dim = torch.as_tensor(interchange_dim)


class TrainableIntervention(Intervention):
    """An intervention with parameters."""

    def tie_weight(self, linked_intervention: nn.Module) -> None:
        """Do nothing: ReFT shares weights by sharing modules."""


class ConstantSourceIntervention(Intervention):
    """An intervention whose source is a constant."""


class SourcelessIntervention(Intervention):
    """An intervention without a source."""


class DistributedRepresentationIntervention(nn.Module):
    """An intervention on a basis of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.is_repr_distributed = True


_OURS = (
    Intervention,
    TrainableIntervention,
    ConstantSourceIntervention,
    SourcelessIntervention,
    DistributedRepresentationIntervention,
)
NAMES = tuple(cls.__name__ for cls in _OURS)
