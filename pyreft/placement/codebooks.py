"""The codebooks of a sound: several ids for each token, or several rows of ids for each text.

Kyutai      input_ids (B, T, C)
MusicGen    input_ids (B * C, T)     attention_mask (B, T)     labels (B, T, C)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from pyreft.annotations import Arguments
from pyreft.base_model.stacks import size_of
from pyreft.placement.targets import Target


def has_codebooks(base: PreTrainedModel) -> bool:
    """Whether a token of a model may have several ids."""
    return size_of(base.config, "num_codebooks") is not None


def ids_rows(targets: Sequence[Target]) -> int:
    """How many rows of ids the model reads for each text."""
    return max((target.component.ids_rows for target in targets), default=1)


def one_row_each(inputs: Arguments, of_text: int) -> Arguments:
    """The arguments of a call with one row for each text, instead of one for each codebook.

    Args:
        inputs: The arguments.
        of_text: The number of rows of ids for each text.
    """
    ids = inputs.get("input_ids")
    if of_text == 1 or not isinstance(ids, Tensor):
        return inputs
    tensors = ((n, v) for n, v in inputs.items() if isinstance(v, Tensor) and v.dim())
    one = {name: value[::of_text] for name, value in tensors if len(value) == len(ids)}
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.dim() == 3:
        # -100 where no codebook has a label.
        one["labels"] = labels.max(-1).values
    return {**inputs, **one}
