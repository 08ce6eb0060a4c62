"""The tensors of each of the six kinds, by our names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# The kinds that upstream has.
KINDS = ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")
CONSTANT = ("consreft", "lobireft")
ORTHONORMAL = ("loreft", "direft", "consreft", "lobireft")


def require_tensors(kind: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The width and the rank of an intervention that has these tensors.

    Raises:
        ValueError: If they are not those of its kind, or their shapes do not fit together.
    """
    name = "rotate_layer.original" if kind in ORTHONORMAL else "proj_layer.weight"
    if name not in tensors or tensors[name].dim() != 2:
        raise ValueError(f"it lacks tensor {name}, a matrix")
    width, rank = tensors[name].shape if kind in ORTHONORMAL else tensors[name].mT.shape
    shapes: dict[str, tuple[int, ...]] = {}
    if kind in ORTHONORMAL:
        shapes["rotate_layer.original"] = (width, rank)
    else:
        shapes["proj_layer.weight"] = (rank, width)
        if "proj_layer.bias" in tensors:
            shapes["proj_layer.bias"] = (rank,)
    if kind in CONSTANT:
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
