"""The transformers Trainer for a `ReftModel`."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from pyreft.data.collator import ReftDataCollator
from pyreft.modeling import ReftModel
from pyreft.training.distributed import ReplicatedAdapter

logger = logging.get_logger(__name__)


class ReftTrainer(ReplicatedAdapter):
    """Train a `ReftModel` as the transformers Trainer trains any model.

    Checkpoints hold the adapter in place of the model. Positions that the config leaves to the
    batch are recorded in the adapter, where a pyreft data module made the batches.

    Args:
        model: The `ReftModel`.
        *args, **kwargs: As for `transformers.Trainer`; the default data collator is a
            `ReftDataCollator`.
        tokenizer: Upstream's name for `processing_class`.

    Raises:
        TypeError: If the model is no `ReftModel`, or both names of the tokenizer are given.
    """

    # A ReftModel, where the Trainer declares a PreTrainedModel; columns, where it declares None.
    model: Any
    _signature_columns: Any

    def __init__(self, model: Any = None, *args: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        if model is not None and not isinstance(model, ReftModel):
            raise TypeError(
                f"ReftTrainer trains a ReftModel, got {type(model).__name__}: wrap the model with "
                "pyreft.get_reft_model first."
            )
        if tokenizer is not None:
            if kwargs.get("processing_class") is not None:
                raise TypeError("give the tokenizer once: `tokenizer` is `processing_class`.")
            kwargs["processing_class"] = tokenizer
        tokenizer = kwargs.get("processing_class")
        if len(args) < 2 and kwargs.get("data_collator") is None and tokenizer is not None:
            kwargs["data_collator"] = ReftDataCollator(tokenizer=tokenizer)
        super().__init__(model, *args, **kwargs)
        self._warn_if_unsaveable()
        positions = getattr(self.data_collator, "positions", None)
        if positions is not None:
            self.model.record_positions(positions)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the base model takes as well as those of `ReftModel`."""
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            self._signature_columns += list(inspect.signature(self.model.model.forward).parameters)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Tell the model where prompts end also where the Trainer keeps the labels to itself."""
        open_ended = any(c.positions is None for c in self.model.reft_config.representations)
        if open_ended and "intervention_locations" not in inputs:
            raise ValueError(
                "the config leaves positions to the batch, and the batch has none: say positions "
                'in the config ("f7+l7"), or use a data module that makes intervention_locations.'
            )
        labels, ids = inputs.get("labels"), inputs.get("input_ids")
        taken = self.label_smoother is not None or self.compute_loss_func is not None
        told = "completion_mask" in inputs or "intervention_locations" in inputs
        by_token = labels is not None and ids is not None and labels.shape == ids.shape
        if taken and not told and by_token and self.model.can_generate():
            inputs = {**inputs, "completion_mask": labels != -100}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _warn_if_unsaveable(self) -> None:
        """Say at the start of a run, not at its first checkpoint, that it cannot be saved."""
        try:
            self.model.reft_config.to_dict()
        except ValueError as error:
            logger.warning(f"This run will fail when it saves: {error}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        directory = output_dir if output_dir is not None else str(self.args.output_dir)
        os.makedirs(directory, exist_ok=True)
        # Whatever else is there: a run must not end with its result refused.
        self.model.save_pretrained(directory, allow_other_files=True)
        tokenizer: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        torch.save(self.args, os.path.join(directory, TRAINING_ARGS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.info(f"Loading best model from {best} (score: {self.state.best_metric}).")
        self.model.load_weights(best)


class ReftTrainerForCausalLM(ReftTrainer):
    """Upstream's name for the trainer of causal language models."""
