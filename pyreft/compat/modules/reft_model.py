"""`pyreft.reft_model`, as upstream names it."""

from torch import nn

from pyreft.compat.model import ReftModel

__all__ = ["ReftModel", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters of a module."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
