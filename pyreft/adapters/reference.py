"""The base model without its adapter, to compare an adapter in training with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyreft.base_model.running import evaluating


class ReferenceModel(nn.Module):
    """The base model of a `ReftModel` as it is without the adapter: one copy serves both.

        DPOTrainer(model=model, ref_model=pyreft.ReferenceModel(model), ...)

    A view: it has no parameters, so nothing moves, shards or trains the base model a second time,
    and `train()` and `eval()` of it change nothing. Its passes are without dropout and without
    gradients, whatever mode the other is in. What is not defined here (`config`, `device`,
    `dtype`, ...) is looked up on the `ReftModel`.

    Args:
        model: The `ReftModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        # In a tuple, where torch finds no submodule.
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

        The call goes to the `ReftModel`: what trainers put in the place of its `forward` (autocast,
        an output head) and on it (FSDP gathers weights there) then is the same for both.
        """
        (model,) = self._of
        with torch.no_grad(), model.disable_adapter(), evaluating(model):
            return model(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As calling the model."""
        return self(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the base model, with the arguments of `ReftModel.generate`."""
        (model,) = self._of
        with model.disable_adapter(), evaluating(model):
            return model.generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights of the base model: trainers tell by them which cached results are of use."""
        (model,) = self._of
        with model.disable_adapter():
            return model.model.state_dict(*args, **kwargs)
