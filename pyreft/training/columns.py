"""Which columns of a data set are for the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from pyreft.adapters import EditedModel
from pyreft.data.collator import ReftDataCollator


def model_columns(model: EditedModel, collator: object) -> list[str]:
    """The columns that the base model takes, those of `ReftModel`, and what the collator keeps."""
    # A subclass of ReftModel may have a `forward` in upstream's convention.
    forwards = (model.model.forward, EditedModel.forward)
    columns = [name for forward in forwards for name in inspect.signature(forward).parameters]
    # Other collators make tensors of all columns, and ids may be text.
    return [*columns, "id"] if isinstance(collator, ReftDataCollator) else columns


def require_columns(columns: Sequence[str], kept: Iterable[str], model: EditedModel) -> None:
    """Raise ValueError for a data set none of whose columns is an input of the model.

    Args:
        columns: Its columns.
        kept: Names of columns that are kept.
        model: The model.
    """
    inputs = set(kept) - {"labels", "label", "label_ids", "id"}
    if not inputs & set(columns):
        raise ValueError(
            f"the data set has the columns {columns}, none of which is an input of the model, "
            f"such as {model.main_input_name}. Make examples of prompts and completions with "
            "pyreft.make_examples(dataset, tokenizer)."
        )
