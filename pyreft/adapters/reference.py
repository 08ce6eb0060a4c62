"""The base model without its adapter, as the reference for an adapter in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyreft.base_model.running import evaluating


class ReferenceModel(nn.Module):
    """The base model of a `ReftModel` without the adapter; both share one copy.

        DPOTrainer(model=model, ref_model=pyreft.ReferenceModel(model), ...)

    It is a view without parameters, so nothing moves, shards or trains the base model a second
    time, and its `train()` and `eval()` change nothing. Its passes are without dropout and without
    gradients, whatever mode the `ReftModel` is in. Attributes that are not defined here (`config`,
    `device`, `dtype`, ...) are looked up on the `ReftModel`.

    Args:
        model: The `ReftModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        # In a tuple, so that torch does not register a submodule.
        self._of = (model,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_of":
                raise
            return getattr(self._of[0], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model, with the arguments of `ReftModel.forward`.

        The call goes to the `ReftModel`, so that both use a trainer's replacement of `forward`
        (autocast, an output head) and its hooks (FSDP gathers weights there).
        """
        (model,) = self._of
        with torch.no_grad(), model.disable_adapter(), evaluating(model):
            return model(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same as calling the model."""
        return self(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the base model, with the arguments of `ReftModel.generate`."""
        (model,) = self._of
        with model.disable_adapter(), evaluating(model):
            return model.generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights of the base model: trainers compare them to validate cached results."""
        (model,) = self._of
        with model.disable_adapter():
            return model.model.state_dict(*args, **kwargs)
