"""What a run is refused for or warned of: labels of no class, a non-finite loss, a frozen head."""

from __future__ import annotations

import reprlib

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.annotations import Arguments
from pyreft.base_model.running import running_model
from pyreft.lora.peft_lora import frozen_lora

logger = logging.get_logger(__name__)

_SEQUENCE = "ForSequenceClassification"
_CLASSIFIERS = (_SEQUENCE, "ForTokenClassification")


def heads_of(base: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """The parts of a classifier behind its backbone, with their parameters; none of others."""
    base = running_model(base)
    if not _is_classifier(base):
        return {}
    heads = [name for name, _ in base.named_children() if name != base.base_model_prefix]
    parameters = {name: list(base.get_submodule(name).parameters()) for name in heads}
    return {name: own for name, own in parameters.items() if own}


def frozen_heads(base: PreTrainedModel) -> list[str]:
    """Names of the heads of a classifier that are not trainable."""
    return [n for n, own in heads_of(base).items() if not any(p.requires_grad for p in own)]


def _is_classifier(base: PreTrainedModel) -> bool:
    """By its name, as in transformers: heads of other models have the same shapes."""
    return _kind(base).endswith(_CLASSIFIERS)


def _kind(base: PreTrainedModel) -> str:
    return type(running_model(base)).__name__


def require_labels(base: PreTrainedModel, labels: Tensor) -> None:
    """Raise ValueError for labels that a classifier has no class for.

    Args:
        base: The base model; only classifiers are looked at.
        labels: Class indices, -100 for none: (B,), or (B, T) for a tagger; or one float for each
            class, (B, classes). With one class, labels are values, and not looked at.
    """
    num_labels = base.config.num_labels
    if not _is_classifier(base) or num_labels is None or num_labels < 2:
        return
    shape = tuple(labels.shape)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        if labels.dtype == torch.bool or shape[1:] != (num_labels,):
            raise ValueError(
                f"the labels of the batch are {str(labels.dtype).removeprefix('torch.')}s of shape "
                f"{shape}; for this model a label is an integer, the index of one of its "
                f"{num_labels} classes, or a list of {num_labels} floats, one for each of them. To "
                "train one value, load the model with num_labels=1."
            )
        return
    if labels.dim() > 1 and _kind(base).endswith(_SEQUENCE):
        raise ValueError(
            f"the labels of the batch are integers of shape {shape}, and a text has one class. For "
            f"several labels at once give {num_labels} floats, one for each class: [1.0, 0.0, ...]."
        )
    wrong = ((labels < 0) | (labels >= num_labels)) & (labels != -100)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"the label of row {row} of the batch is {int(labels[wrong][0])}; the model has the "
            f"{num_labels} labels 0 to {num_labels - 1}. Load it with a larger num_labels, or mend "
            "the data; for several labels at once, labels are floats, one for each class."
        )


def require_tokens(base: PreTrainedModel, inputs: Arguments) -> None:
    """Raise ValueError for a token that the model has no embedding for.

    On a GPU such a token would end the process, with an error that does not name it.

    Args:
        base: The base model.
        inputs: The batch; its input_ids, and labels if the model generates, are looked at.
    """
    names = ("input_ids", "labels") if base.can_generate() else ("input_ids",)
    there = {n: inputs[n] for n in names if isinstance(inputs.get(n), Tensor)}
    # Not the shape of its weight: a process may have a part of it. Other classes may lack it.
    size = getattr(base.get_input_embeddings(), "num_embeddings", None)
    if size is None:
        return
    for name, ids in there.items():
        wrong = ((ids < 0) | (ids >= size)) & ((ids != -100) | (name == "input_ids"))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"{name} of row {row} of the batch have the token {int(ids[wrong][0])}; the model "
                f"has the tokens 0 to {size - 1}. Is it this model's tokenizer? If tokens were "
                "added to it, call resize_token_embeddings(len(tokenizer)) of the base model, "
                "before get_reft_model."
            )


def require_finite(loss: Tensor, step: int, inputs: Arguments, example_ids: object = None) -> None:
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


def require_reft_model(model: object, trainer: str) -> None:
    """Raise TypeError for a model that is no `ReftModel`, if there is one."""
    if model is not None and not isinstance(model, EditedModel):
        raise TypeError(
            f"{trainer} trains a ReftModel, got {type(model).__name__}: wrap the model with "
            "pyreft.get_reft_model first."
        )


def warn_if_unsaveable(model: EditedModel) -> None:
    """Warn at the start of a run, not at its first checkpoint, that it cannot be saved."""
    try:
        model.reft_config.to_dict()
    except ValueError as error:
        logger.warning(f"This run will fail when it saves: {error}")


def warn_if_frozen(base: PreTrainedModel) -> None:
    """Warn of what is usually trainable and is not: the head of a classifier, a LoRA."""
    if frozen_lora(base):
        logger.warning(
            "The LoRA of the base model is frozen, and is neither trained nor saved. To train "
            "it, wrap the model with get_reft_model(..., disable_model_grads=False)."
        )
    if heads := frozen_heads(base):
        logger.warning(
            f"The head of {type(base).__name__} is frozen ({', '.join(heads)}). "
            "Unless it was trained before, train it with the interventions: "
            f"ReftConfig(..., modules_to_save={heads})."
        )
