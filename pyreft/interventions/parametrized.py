"""torch's orthogonal parametrization, in which other libraries save directions <-> directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

_ORIGINAL, _BASE = "parametrizations.weight.original", "parametrizations.weight.0.base"
# The error of orthonormality that float32 rounding causes.
TOLERANCE = 1e-4


class _Weight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def read_parametrized(saved: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Read a weight from its saved parametrization, (m, n) with orthonormal rows or columns.

    Args:
        saved: A state dict, with `prefix` before the names of the parametrization.
        prefix: The name of the module, followed by a dot.

    Raises:
        ValueError: If a tensor is missing or the two do not fit together.
    """
    names = [f"{prefix}{name}" for name in (_ORIGINAL, _BASE)]
    if missing := [name for name in names if name not in saved]:
        raise ValueError(f"the tensor {missing[0]} is missing")
    original, base = (saved[name].float() for name in names)
    if original.dim() != 2 or base.shape != (max(original.shape), max(original.shape)):
        raise ValueError(
            f"{names[0]} of shape {tuple(original.shape)} does not go with {names[1]} of shape "
            f"{tuple(base.shape)}"
        )
    module = _parametrized(torch.eye(*original.shape))
    module.load_state_dict({_ORIGINAL: original, _BASE: base})
    return module.weight.detach()


def write_parametrized(weight: Tensor, prefix: str) -> dict[str, Tensor]:
    """The parametrization, as a state dict, of a weight (m, n) with orthonormal rows or columns."""
    module = _parametrized(weight.detach().float())
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def is_orthonormal(columns: Tensor) -> bool:
    """Whether the columns of a matrix are orthonormal, up to rounding."""
    columns = columns.double()
    identity = torch.eye(columns.shape[1], dtype=torch.float64)
    return bool((columns.mT @ columns - identity).abs().max() <= TOLERANCE)


def _parametrized(weight: Tensor) -> _Weight:
    # The parametrization completes the weight to a square matrix with random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _Weight(weight)
        parametrizations.orthogonal(module)
        return module
