"""The tensors of each of the six kinds, by our names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.bases import OrthonormalBasis
from pyreft.interventions.registry import intervention_class

# The kinds that upstream has.
KINDS = ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")


def has_orthonormal_rows(kind: str) -> bool:
    """Whether one of these kinds edits along orthonormal directions."""
    return issubclass(_class(kind), OrthonormalBasis)


def has_constant_source(kind: str) -> bool:
    """Whether one of these kinds learns a constant, not a linear map of the hidden state."""
    return _class(kind).constant_source


def _class(kind: str) -> type[LowRankIntervention]:
    cls = intervention_class(kind)
    assert issubclass(cls, LowRankIntervention)
    return cls


def require_tensors(kind: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The width and the rank of an intervention that has these tensors.

    Raises:
        ValueError: If they are not those of its kind, or their shapes do not fit together.
    """
    orthonormal = has_orthonormal_rows(kind)
    name = "rotate_layer.original" if orthonormal else "proj_layer.weight"
    if name not in tensors or tensors[name].dim() != 2:
        raise ValueError(f"it lacks tensor {name}, a matrix")
    width, rank = tensors[name].shape if orthonormal else tensors[name].mT.shape
    shapes: dict[str, tuple[int, ...]] = {}
    if orthonormal:
        shapes["rotate_layer.original"] = (width, rank)
    else:
        shapes["proj_layer.weight"] = (rank, width)
        if "proj_layer.bias" in tensors:
            shapes["proj_layer.bias"] = (rank,)
    if has_constant_source(kind):
        shapes["learned_source"] = (rank,)
    else:
        shapes |= {"learned_source.weight": (rank, width), "learned_source.bias": (rank,)}
    if wrong := sorted(set(shapes) ^ set(tensors)):
        verb = "lacks" if wrong[0] in shapes else "has the unknown"
        raise ValueError(f"it {verb} tensor {wrong[0]}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(
                f"the tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not floats "
                f"of shape {shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the tensor {name} is not finite (NaN or infinite)")
    return width, rank
