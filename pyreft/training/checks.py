"""What must not train on: labels that no class has, a loss that is no number."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.modeling.lora import is_peft_model

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")


def frozen_heads(base: Any) -> list[str]:
    """Names of the parts of a classifier, behind its backbone, that do not learn."""
    base = base.get_base_model() if is_peft_model(base) else base
    if not _is_classifier(base):
        return []
    heads = [name for name, _ in base.named_children() if name != base.base_model_prefix]
    parameters = {name: list(base.get_submodule(name).parameters()) for name in heads}
    return [n for n, own in parameters.items() if own and not any(p.requires_grad for p in own)]


def _is_classifier(base: nn.Module) -> bool:
    """By its name, as transformers tells: heads of other models have the same shapes."""
    return str(base._get_name()).endswith(_CLASSIFIERS)


def require_labels(base: Any, labels: Tensor) -> None:
    """Raise ValueError for the label of a class that a classifier does not have.

    Args:
        base: The base model; only classifiers are looked at.
        labels: (B,) or (B, T) class indices, -100 for none. Labels that are no integers
            (regression, several labels) are not read.
    """
    num_labels = base.config.num_labels
    # With one class, labels are values.
    if not _is_classifier(base) or num_labels < 2 or labels.is_floating_point():
        return
    wrong = ((labels < 0) | (labels >= num_labels)) & (labels != -100)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"the label of row {row} of the batch is {int(labels[wrong][0])}; the model has the "
            f"{num_labels} labels 0 to {num_labels - 1}. Load it with a larger num_labels, or mend "
            "the data; for several labels at once, labels are floats, one for each class."
        )


def require_finite(
    loss: Tensor, step: int, inputs: Mapping[str, Any], example_ids: Any = None
) -> None:
    """Raise FloatingPointError for a loss that is NaN or infinite.

    Args:
        loss: The loss of a batch.
        step: The optimiser step that it was for.
        inputs: The batch.
        example_ids: What the column `id` of the data set says of its rows.
    """
    if bool(torch.isfinite(loss).all()):
        return
    ids = example_ids.tolist() if isinstance(example_ids, Tensor) else example_ids
    rows = inputs.get("input_ids")
    shown = reprlib.repr(rows.tolist()) if isinstance(rows, Tensor) else "none"
    raise FloatingPointError(
        f"the loss of step {step} is {loss.mean().item()}, so training stops; the parameters are "
        "those of the step before, and checkpoints are as they were. "
        + (f"The examples of the batch have the ids {ids}; " if ids is not None else "")
        + f"their input_ids are {shown}. Look at these rows; lower the learning rate or set "
        "max_grad_norm; with fp16, use bf16 or float32."
    )
