"""PEFT's wrappers of models and layers."""

from __future__ import annotations

from torch import nn

from pyreft.installed.fact import fact, require_found


@fact("peft")
def peft_wraps_layers() -> None:
    """A PeftModel has peft_config and get_base_model, and a tuner keeps the layer that it wraps in
    base_layer.
    """
    import inspect

    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    require_found(callable(PeftModel.get_base_model), True, "get_base_model of a PeftModel")
    require_found(callable(BaseTunerLayer.get_base_layer), True, "get_base_layer of a tuner layer")
    require_found("base_layer" in inspect.signature(Linear).parameters, True, "LoRA's base_layer")
    copy = "original_module" in inspect.getsource(ModulesToSaveWrapper)
    require_found(copy, True, "whether a trained copy keeps its original_module")
    for name in ("r", "lora_alpha", "target_modules", "init_lora_weights"):
        require_found(hasattr(LoraConfig(), name), True, f"whether LoraConfig has {name}")


def is_peft_model(model: object) -> bool:
    """Whether PEFT wraps the model."""
    wrapped = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    if wrapped:
        peft_wraps_layers.require("an adapter on a base model that PEFT wraps")
    return wrapped


def layer_below(module: nn.Module) -> nn.Module:
    """The module that PEFT's layers wrap (LoRA, a trained copy); any other is returned as it is."""
    for name in ("base_layer", "original_module"):
        if isinstance(inner := getattr(module, name, None), nn.Module):
            return layer_below(inner)
    return module


def is_tuner(module: nn.Module) -> bool:
    """Whether a module is PEFT's, around a layer."""
    return layer_below(module) is not module


def tuner_settings(module: nn.Module) -> str:
    """What decides what a tuner adds to its layer, beside its parameters."""
    names = ("disable_adapters", "active_adapters", "merged", "scaling")
    return repr([getattr(module, name, None) for name in names])
