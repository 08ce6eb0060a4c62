"""The model that runs, without its wrappers; the devices of its parts, and their mode."""

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
    """The transformers model itself, without the wrappers of torch.compile and PEFT."""
    model = uncompiled(model)
    get_base_model = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", model if get_base_model is None else get_base_model())


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """The device a module runs on: that of its parameters, or where accelerate loads them."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    return device_of_hook(module.modules()) or default


@contextmanager
def evaluating(model: nn.Module, but: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module has its own mode again.

    Args:
        model: The model.
        but: Modules of these classes are in training mode.
    """
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = isinstance(module, but)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
