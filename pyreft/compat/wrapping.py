"""A base model is wrapped with a fresh adapter."""

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
    """Wrap a base model with a fresh adapter.

    Args:
        model: Any transformers model.
        reft_config: What to learn and where.
        set_device: Put every intervention where the part of the model is that it edits.
        disable_model_grads: Freeze the base model.
        adapter_name: What to call the adapter.

    Returns:
        The model, in the mode of the base model, training or evaluation.

    Raises:
        ValueError: If a layer or component is not there, or an intervention does not fit it.
        TypeError: If `reft_config` is no `ReftConfig`, or `model` is no transformers model or has
            an adapter already.
    """
    reft_model = ReftModel(reft_config, model, adapter_name)
    if set_device:
        reft_model.place_interventions()
    if disable_model_grads:
        reft_model.disable_model_gradients()
    return reft_model
