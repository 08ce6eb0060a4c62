"""Wrap a base model with a new adapter."""

from __future__ import annotations

from transformers import PreTrainedModel

from pyreft.compat.model import ReftModel
from pyreft.config import ReftConfig


def get_reft_model(
    model: PreTrainedModel,
    reft_config: ReftConfig,
    set_device: bool = True,
    disable_model_grads: bool = True,
    adapter_name: str = "default",
) -> ReftModel:
    """Wrap a base model with a new adapter.

    Args:
        model: Any transformers model.
        reft_config: The interventions to train and where they edit.
        set_device: Move every intervention to the device of the module that it edits.
        disable_model_grads: Freeze the base model.
        adapter_name: The name of the adapter.

    Returns:
        The model, in the mode (training or evaluation) of the base model.

    Raises:
        ValueError: If a layer or component does not exist, or an intervention does not fit it.
        TypeError: If `reft_config` is not a `ReftConfig`, or `model` is not a transformers model
            or already has an adapter.
    """
    reft_model = ReftModel(reft_config, model, adapter_name)
    if set_device:
        reft_model.place_interventions()
    if disable_model_grads:
        reft_model.disable_model_gradients()
    return reft_model
