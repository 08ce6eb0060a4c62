"""Upstream's data modules: lists of prompts and completions -> data set and collator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import datasets
from transformers.utils import logging

from pyreft.annotations import Columns
from pyreft.data.collator import ReftDataCollator
from pyreft.data.locations import locate, spec_of_each
from pyreft.data.tokenize import (
    NoRoomError,
    describe_cut,
    describe_left_out,
    room,
    tokenize_fitting,
    with_labels,
)
from pyreft.positions import PositionSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


class SupervisedData(TypedDict):
    """The arguments of a trainer that a data module returns."""

    train_dataset: datasets.Dataset
    eval_dataset: None
    data_collator: ReftDataCollator


def make_last_position_supervised_data_module(
    tokenizer: PreTrainedTokenizerBase,
    model: object,
    inputs: Sequence[str],
    outputs: Sequence[str],
    num_interventions: int = 1,
    nonstop: bool = False,
) -> SupervisedData:
    """Data set and collator for interventions at the last prompt token.

    Args:
        tokenizer: The base model's tokenizer.
        model: The base model, or a `ReftModel`, in which the positions are recorded.
        inputs: The prompts.
        outputs: Their completions.
        num_interventions: Number of interventions of the model, all at the last token.
        nonstop: Leave out the end-of-sequence token.

    Returns:
        The arguments train_dataset, eval_dataset (None) and data_collator of a trainer. The data
        set has the columns input_ids, labels and intervention_locations.

    Raises:
        ValueError: If a prompt or completion is empty, no prompt leaves room for its completion,
            or the numbers of prompts and completions differ. Single prompts that are too long for
            that are left out, with a warning.
        TypeError: If `inputs` or `outputs` is one text.
    """
    return make_multiple_position_supervised_data_module(
        tokenizer, model, inputs, outputs, "l1", num_interventions, nonstop, share_weights=True
    )


# Upstream's two functions differ in name alone: the caller applies the chat template.
make_last_position_supervised_chat_data_module = make_last_position_supervised_data_module


def make_multiple_position_supervised_data_module(
    tokenizer: PreTrainedTokenizerBase,
    model: object,
    inputs: Sequence[str],
    outputs: Sequence[str],
    positions: str = "f1+l1",
    num_interventions: int = 1,
    nonstop: bool = False,
    share_weights: bool = False,
) -> SupervisedData:
    """Data set and collator for interventions at the positions of a spec.

    Args:
        tokenizer, model, inputs, outputs, nonstop: As for the last position.
        positions: A position spec, such as "f7+l7".
        num_interventions: Number of interventions of the model: one for each layer with
            `share_weights`; without, one for each layer and each part of the spec, in this
            order: all layers at the first part, then all layers at the second.
        share_weights: Whether each intervention edits all positions.

    Returns:
        As for the last position. On a short prompt, missing positions are -100. If the spec has
        positions in the completion, there is no column: the model computes them from its spec.

    Raises:
        ValueError: As for the last position; or if `num_interventions` is not a multiple of the
            parts of a spec whose weights are not shared.
        TypeError: As for the last position.
    """
    if isinstance(inputs, str) or isinstance(outputs, str):
        raise TypeError("inputs and outputs are lists of texts, got a text.")
    if len(inputs) != len(outputs):
        raise ValueError(f"there are {len(inputs)} prompts, but {len(outputs)} completions.")
    specs = spec_of_each(PositionSpec.parse(positions), num_interventions, share_weights)
    columns: Columns = {"input_ids": [], "intervention_locations": [], "labels": []}
    limit, cut, left_out = room(tokenizer), [], list[int]()
    pairs = zip(inputs, outputs, strict=True)
    for row, (prompt, completion) in enumerate(
        logging.tqdm(pairs, "Tokenizing", total=len(inputs))
    ):
        try:
            ids, prompt_length, missing = tokenize_fitting(
                tokenizer, prompt, completion, limit, not nonstop
            )
            locations = locate(specs, ids, prompt_length)
        except NoRoomError:
            left_out.append(row)
            continue
        except ValueError as error:
            raise ValueError(f"row {row}: {str(error).rstrip('.')}.") from None
        cut.append(missing)
        if locations is not None:
            columns["intervention_locations"].append(locations)
        for name, values in with_labels(ids, prompt_length).items():
            columns[name].append(values)
    if left_out:
        logger.warning(describe_left_out(left_out, len(inputs), limit))
    if any(cut):
        logger.warning(describe_cut(cut, limit))
    collator = ReftDataCollator(tokenizer=tokenizer, positions=specs)
    if hasattr(model, "record_positions"):
        model.record_positions(specs)
    if not columns["intervention_locations"]:
        del columns["intervention_locations"]
    dataset = datasets.Dataset.from_dict(columns)
    return {"train_dataset": dataset, "eval_dataset": None, "data_collator": collator}
