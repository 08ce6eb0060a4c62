"""The methods of transformers' Trainer that pyreft's trainers extend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn

from pyreft.annotations import Inputs
from pyreft.installed.fact import fact

if TYPE_CHECKING:
    from transformers import Trainer

# The loss, or the loss and the outputs of the model.
Loss: TypeAlias = "Tensor | tuple[Tensor, object]"

# Method -> the arguments, beside self, that its extension takes by name.
FOR_CHECKPOINTS: Mapping[str, tuple[str, ...]] = {
    "_get_output_dir": ("trial",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
}
FOR_TRAINING: Mapping[str, tuple[str, ...]] = {
    "_inner_training_loop": (),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_move_model_to_device": ("model", "device"),
    "_remove_unused_columns": ("dataset", "description"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_set_signature_columns_if_needed": (),
    "_wrap_model": ("model",),
    "call_model_init": ("trial",),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_accelerator_and_postprocess": (),
    "create_optimizer": (),
    "evaluation_loop": (),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "training_step": ("model", "inputs"),
}


@fact("transformers")
def trainer_saves_by_methods() -> None:
    """The Trainer calls the methods that save, find and load a checkpoint."""
    _require_methods(FOR_CHECKPOINTS)


@fact("transformers")
def trainer_steps_by_methods() -> None:
    """The Trainer calls the methods that compute the loss of a batch, and that place and wrap a
    model.
    """
    _require_methods(FOR_TRAINING)


@fact("transformers")
def trainer_asks_where_to_go_on() -> None:
    """The Trainer calls _init_training_state for the step at which a run is resumed, so that a
    stream is resumed after its first pass.
    """
    names = ("max_steps", "num_update_steps_per_epoch", "num_train_epochs")
    _require_methods({"_init_training_state": (*names, "resume_from_checkpoint", "trial")})


def _require_methods(methods: Mapping[str, tuple[str, ...]]) -> None:
    from transformers import Trainer

    called = {name for function in _functions(Trainer) for name in function.__code__.co_names}
    for name, expected in methods.items():
        method = getattr(Trainer, name, None)
        if method is None:
            raise AttributeError(f"Trainer has no method {name}")
        found = inspect.signature(method).parameters
        if missing := [parameter for parameter in expected if parameter not in found]:
            raise TypeError(f"Trainer.{name} takes no {', '.join(missing)}")
        if name not in called:
            raise ValueError(f"nothing in Trainer calls {name}")


def _functions(cls: type) -> Iterator[FunctionType]:
    """The functions of a class and its bases, without their decorators."""
    for base in cls.__mro__:
        for value in vars(base).values():
            function = inspect.unwrap(value) if inspect.isfunction(value) else None
            if function is not None and hasattr(function, "__code__"):
                yield function


def without_items(compute_loss: Callable[..., Loss]) -> Callable[..., Loss]:
    """Add num_items_in_batch to a `compute_loss` that was written for older Trainers."""

    @wraps(compute_loss)
    def compute(
        self: Trainer,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> Loss:
        return compute_loss(self, model, inputs, return_outputs)

    return compute
