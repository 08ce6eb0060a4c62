"""accelerate's hooks on modules whose weights are on several devices, on disk or on meta."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pyreft.installed.fact import fact, require_found


@fact("accelerate")
def placed_modules_have_a_hook() -> None:
    """A module that accelerate places has an _hf_hook, with its execution_device."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    module = add_hook_to_module(nn.Identity(), AlignDevicesHook(execution_device="cpu"))
    require_found(is_placed(module), True, "whether a module with a hook has it")
    require_found(device_of_hook([module]), torch.device("cpu"), "the device of the hook")


def is_placed(module: nn.Module) -> bool:
    """Whether accelerate moves the inputs or the weights of a module in its forward pass."""
    return hasattr(module, "_hf_hook")


def device_of_hook(modules: Iterable[nn.Module]) -> torch.device | None:
    """The device on which accelerate runs the first of these modules that it placed."""
    hooks = (getattr(module, "_hf_hook", None) for module in modules)
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    found = next((device for device in devices if device is not None), None)
    return None if found is None else torch.device(found)


@fact("torch")
def fsdp_can_ignore_parameters() -> None:
    """Fully_shard does not shard the parameters in its ignored_params."""
    import inspect

    from torch.distributed.fsdp import fully_shard

    found = "ignored_params" in inspect.signature(fully_shard).parameters
    require_found(found, True, "whether fully_shard takes ignored_params")
