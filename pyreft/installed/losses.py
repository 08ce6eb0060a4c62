"""The loss of transformers' causal language models, inside their forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from pyreft.installed.fact import fact, require_found

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@fact("transformers")
def causal_loss_is_replaceable() -> None:
    """A causal language model calls self.loss_function(logits, labels, vocab_size), which is
    ForCausalLMLoss and can be replaced on the model.
    """
    from transformers import PreTrainedModel

    expected = ["logits", "labels", "vocab_size", "num_items_in_batch", "ignore_index"]
    found = list(inspect.signature(causal_loss()).parameters)
    require_found(found[:5], expected, "the parameters of ForCausalLMLoss")
    require_found("shift_labels" in found, True, "whether it takes shift_labels")
    loss = inspect.getattr_static(PreTrainedModel, "loss_function")
    if not isinstance(loss, property) or loss.fset is None or loss.fget is None:
        raise TypeError("loss_function of a model is not a property that can be set")
    read = loss.fget.__code__.co_names
    require_found("_loss_function" in read, True, "whether it reads _loss_function")


def causal_loss() -> Callable[..., Tensor]:
    """The loss function of transformers for causal language models."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    return ForCausalLMLoss


def names_loss(model_class: type[PreTrainedModel]) -> bool:
    """Whether the code of `forward` of a model, without its decorators, uses its loss function."""
    return "loss_function" in inspect.unwrap(model_class.forward).__code__.co_names


@contextmanager
def replaced_loss(model: PreTrainedModel, loss: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the loss function of a model inside the block."""
    before = vars(model).get("_loss_function")
    model.loss_function = loss
    try:
        yield
    finally:
        model.loss_function = before
        if before is None:
            del model._loss_function
