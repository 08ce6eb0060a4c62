"""The model that runs, inside what others put around it; where its parts run, and in which mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from pyreft.installed.modules import uncompiled
from pyreft.installed.offloading import device_of_hook


def running_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, inside what torch.compile and PEFT put around it."""
    model = uncompiled(model)
    of_peft = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", model if of_peft is None else of_peft())


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module runs: where its parameters are, or where accelerate brings them from disk."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    return device_of_hook(module.modules()) or default


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module that is in training mode; `train()` would set them all."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
