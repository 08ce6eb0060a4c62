"""The transformers Trainer for a `ReftModel`."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from pyreft.modeling import ReftModel

logger = logging.get_logger(__name__)


class ReftTrainer(Trainer):
    """Train a `ReftModel` as the transformers Trainer trains any model.

    Checkpoints hold the adapter in place of the model. Positions that the config leaves to the
    batch are recorded in the adapter, where a pyreft data module made the batches.

    Args:
        model: The `ReftModel`.
        *args, **kwargs: As for `transformers.Trainer`; `tokenizer` is upstream's name for
            `processing_class`.

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
        super().__init__(model, *args, **kwargs)
        positions = getattr(self.data_collator, "positions", None)
        if positions is not None:
            self.model.record_positions(positions)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the base model takes as well as those of `ReftModel`."""
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            self._signature_columns += list(inspect.signature(self.model.model.forward).parameters)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
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
