"""How close is the same."""

import torch

# In float64, relative to the largest number expected.
TOLERANCE = 1e-9
# An exported LoRA is in float32.
ROUNDED = 1e-4


class DifferenceError(AssertionError):
    """pyreft and the reference are not the same."""


def compare(what, found, expected, tolerance=TOLERANCE, nan=False):
    """Raise DifferenceError unless two tensors agree; infinite entries agree exactly.

    With `nan`, so do entries that are NaN: a token that one processor bans and another raises is
    infinity minus infinity in transformers 5.0.
    """
    if found.shape != expected.shape:
        raise DifferenceError(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if nan:
        if not torch.equal(found.isnan(), expected.isnan()):
            raise DifferenceError(f"{what}: NaN in other places")
        found, expected = found[~found.isnan()], expected[~expected.isnan()]
    infinite = expected.isinf()
    if not torch.equal(found[infinite], expected[infinite]):
        raise DifferenceError(f"{what}: infinite in other places")
    one, other = found[~infinite], expected[~infinite]
    if not other.numel():
        return
    scale = max(1.0, other.abs().max().item())
    difference = (one - other).abs().max().item() / scale
    if not difference <= tolerance:
        raise DifferenceError(f"{what}: differs by {difference:.2g}, relative to {scale:.2g}")


def require(holds, what):
    if not holds:
        raise DifferenceError(what)
