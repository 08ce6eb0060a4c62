"""A batch of the data loader becomes what the model is called with."""

from __future__ import annotations

from torch import Tensor
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.annotations import Arguments, Inputs
from pyreft.base_model.running import running_model
from pyreft.positions import PositionSpec
from pyreft.positions.counted_pad import without_leading_pad
from pyreft.reuse.plan import counts_tokens
from pyreft.training.checks import require_labels, require_tokens

logger = logging.get_logger(__name__)


def without_ids(inputs: Arguments) -> Inputs:
    """A batch without the ids of its examples, and without the pad tokens that all rows begin with.

    Args:
        inputs: A batch of a collator.
    """
    return without_leading_pad({name: value for name, value in inputs.items() if name != "id"})


def record_positions(model: EditedModel, *sources: object) -> None:
    """Record in the adapter the positions of the batches, if a source has them.

    Args:
        model: The model.
        sources: A collator, a data set; the first that has positions is used.
    """
    found = [getattr(source, "positions", None) for source in sources]
    if given := [positions for positions in found if positions is not None]:
        model.record_positions(given[0])


class BatchPreparation:
    """Checks the batches of one trainer, and adds what its model needs and they lack."""

    def __init__(self) -> None:
        # Whether a batch had positions of its own.
        self._located = False

    def prepare(self, model: EditedModel, batch: Arguments, keeps_labels: bool) -> Inputs:
        """The inputs of the model.

        Args:
            model: The model.
            batch: A batch of a collator.
            keeps_labels: Whether the Trainer computes the loss, and the model gets no labels.

        Raises:
            ValueError: If a label is that of no class, or the model has no such token.
        """
        inputs, base = without_ids(batch), model.model
        located = "intervention_locations" in inputs
        self._located |= located
        if not located and any(c.positions is None for c in model.reft_config.representations):
            inputs["positions"] = "all"
            self._edit_every_token(model)
        labels = inputs.get("labels")
        require_tokens(base, inputs)
        if isinstance(labels, Tensor):
            require_labels(base, labels)
            if keeps_labels and base.can_generate():
                inputs |= _found_by_labels(model, inputs, labels)
        return inputs | _positions_of_tokens(model, inputs)

    def _edit_every_token(self, model: EditedModel) -> None:
        """Neither config nor batch has positions, where upstream edits every token.

        If all batches of a run are such, the adapter records it, to edit the same when loaded.
        """
        logger.warning_once(
            "The config leaves positions to the batch, and the batch has none: every token is "
            'edited, positions="all". Say positions in the config ("f7+l7") if others are meant.'
        )
        if model.training and not self._located:
            configs = model.reft_config.representations
            model.record_positions([c.positions or PositionSpec.parse("all") for c in configs])


def _found_by_labels(model: EditedModel, inputs: Inputs, labels: Tensor) -> Inputs:
    """What a model that gets labels finds by them: decoder inputs, and where prompts end."""
    found: Inputs = {}
    if model.config.is_encoder_decoder:
        if inputs.get("decoder_input_ids") is None:
            decoded = model.prepare_decoder_input_ids_from_labels(labels=labels)
            found["decoder_input_ids"] = decoded
    elif "input_ids" not in inputs or labels.shape != inputs["input_ids"].shape:
        return found
    if "completion_mask" not in inputs:
        found["completion_mask"] = labels != -100
    return found


def _positions_of_tokens(model: EditedModel, inputs: Inputs) -> Inputs:
    """The position_ids of a batch that is padded at the left, for a causal model.

    By itself it counts columns, so that a learned position would depend on the padding.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask[:, 0].all()):
        return {}
    if "position_ids" in inputs or model.config.is_encoder_decoder:
        return {}
    if not counts_tokens(running_model(model.model)):
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
