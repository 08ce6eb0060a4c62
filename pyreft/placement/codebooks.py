"""The codebooks of a sound: several ids for each token, or several rows of ids for each text.

Kyutai      input_ids (B, T, C)
MusicGen    input_ids (B * C, T)     attention_mask (B, T)     labels (B, T, C)
"""

from __future__ import annotations

from torch import Tensor

from pyreft.annotations import Arguments


def one_row_each(inputs: Arguments, of_text: int) -> Arguments:
    """The arguments of a call with one row for each text, instead of one for each codebook.

    Args:
        inputs: The arguments.
        of_text: The number of rows of ids for each text, more than one.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        return inputs
    tensors = ((n, v) for n, v in inputs.items() if isinstance(v, Tensor) and v.dim())
    one = {name: value[::of_text] for name, value in tensors if len(value) == len(ids)}
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.dim() == 3:
        # -100 where no codebook has a label.
        one["labels"] = labels.max(-1).values
    return {**inputs, **one}
