"""The transformers Trainer for a `ReftModel`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.data.collator import ReftDataCollator
from pyreft.installed.trainer_methods import (
    trainer_steps_by_methods,
    without_items,
)
from pyreft.interventions import takes_argument
from pyreft.lora.peft_lora import frozen_lora
from pyreft.positions import PositionSpec
from pyreft.positions.counted_pad import without_leading_pad
from pyreft.training.checkpoints import AdapterCheckpoints
from pyreft.training.checks import frozen_heads, require_finite, require_labels, require_tokens
from pyreft.training.distributed import DistributedMixin
from pyreft.training.measures import describe_interventions
from pyreft.training.predictions import GeneratedPredictionsMixin
from pyreft.training.rates import parameter_groups, split_groups
from pyreft.training.reusing import ReuseMixin
from pyreft.training.threads import warn_if_threads_wait

logger = logging.get_logger(__name__)


class ReftTrainer(
    AdapterCheckpoints, GeneratedPredictionsMixin, DistributedMixin, ReuseMixin, Trainer
):
    """Train a `ReftModel` as the transformers Trainer trains any model.

    Checkpoints hold the adapter in place of the model, and are there whole or not at all.
    Positions that the config leaves to the batch are recorded in the adapter, where a pyreft data
    module or data set made the batches. Training logs have, beside the loss, `intervention_norm`
    and `orthonormality_error`. With `Seq2SeqTrainingArguments(predict_with_generate=True)`
    evaluation hands to `compute_metrics` what the model generates from the prompts.

    Args:
        model: The `ReftModel`.
        *args: As for `transformers.Trainer`, in its order.
        **kwargs: As for `transformers.Trainer`; the default data collator is a
            `ReftDataCollator`.
        tokenizer: Upstream's name for `processing_class`.
        learning_rate_ratios: How many times the learning rate R, P, W and b have, as
            {"R": 4, "b": 10}; see `pyreft.parameter_groups`.
        reuse_frozen: Compute only what the adapter changes and the loss needs, where that is
            exact: once for an example what no step changes, and the output head on labelled tokens
            alone. Log lines say what, and where not.
        reuse_memory: How much of it is kept, as "2GB" or in bytes; half of the free memory by
            default. What is not kept is computed again, without gradient.
        reuse_disk: A directory to keep the rest in.

    Attributes:
        reuse: After the first step, what is reused, or why nothing is, and a report.

    Raises:
        TypeError: If the model is no `ReftModel`, or both names of the tokenizer are given.
        ValueError: While training, if a label is that of no class, or no column of the data set
            is an input of the model.
        OSError: While training, if a checkpoint cannot be saved; older ones stay.
        FloatingPointError: While training, if the loss is NaN or infinite.
        UnsupportedReleaseError: If the installed Trainer works in a way that is not known.
    """

    # Columns, where the Trainer declares None.
    _signature_columns: Any
    # The Trainer makes a model of `model_init` before it has these.
    data_collator: Any = None
    train_dataset: Any = None
    # Whether `compute_loss` takes the number of tokens in a step.
    _takes_items = True
    # Whether it reads more of the outputs than the loss where an evaluation wants that alone. A
    # subclass that has a `compute_loss` of its own and does not may say so.
    reads_outputs = False
    # Whether a batch had positions of its own.
    _located = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("compute_loss")
        if own is not None and "reads_outputs" not in vars(cls):
            cls.reads_outputs = True
        if own is not None and not takes_argument(own, "num_items_in_batch"):
            cls._takes_items = False
            cls.compute_loss = without_items(own)  # type: ignore[method-assign]

    def __init__(
        self,
        model: Any = None,
        *args: Any,
        tokenizer: Any = None,
        learning_rate_ratios: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        trainer_steps_by_methods.require(type(self).__name__)
        if model is not None and not isinstance(model, EditedModel):
            raise TypeError(
                f"{type(self).__name__} trains a ReftModel, got {type(model).__name__}: wrap the "
                "model with pyreft.get_reft_model first."
            )
        if tokenizer is not None:
            if kwargs.get("processing_class") is not None:
                raise TypeError("give the tokenizer once: `tokenizer` is `processing_class`.")
            kwargs["processing_class"] = tokenizer
        tokenizer = kwargs.get("processing_class")
        if len(args) < 2 and kwargs.get("data_collator") is None and tokenizer is not None:
            kwargs["data_collator"] = ReftDataCollator(tokenizer=tokenizer, model=model)
        self.learning_rate_ratios = learning_rate_ratios
        super().__init__(model, *args, **kwargs)
        if not self._takes_items:
            # The Trainer then divides by the number of accumulated batches, as it did.
            self.model_accepts_loss_kwargs = False
        if learning_rate_ratios:
            self._check_ratios(learning_rate_ratios)
        self._warn_if_unsaveable()
        self._warn_if_frozen()
        self._record_positions(self.model)

    def call_model_init(self, trial: Any = None) -> Any:
        """The Trainer's: every run of a hyperparameter search has a model of its own.

        Raises:
            TypeError: If `model_init` returns no `ReftModel`.
        """
        model = super().call_model_init(trial)
        if not isinstance(model, EditedModel):
            raise TypeError(f"model_init must make a ReftModel, got {type(model).__name__}.")
        self._record_positions(model)
        return model

    def _record_positions(self, model: EditedModel) -> None:
        positions = getattr(self.data_collator, "positions", None)
        if positions is None:
            positions = getattr(self.train_dataset, "positions", None)
        if positions is not None:
            model.record_positions(positions)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the base model takes as well as those of `ReftModel`."""
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not known:
            # A subclass of ReftModel may have a `forward` in upstream's convention.
            for forward in (self.model.model.forward, EditedModel.forward):
                self._signature_columns += list(inspect.signature(forward).parameters)
            # Other collators make tensors of all that they get, and ids may be text.
            if isinstance(self.data_collator, ReftDataCollator):
                self._signature_columns.append("id")

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """The Trainer's, for data sets that have a column to train on."""
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            inputs = set(self._signature_columns) - {"labels", "label", "label_ids", "id"}
            if not inputs & set(dataset.column_names):
                raise ValueError(
                    f"the data set has the columns {dataset.column_names}, none of which is an "
                    f"input of the model, such as {self.model.main_input_name}. Make examples of "
                    "prompts and completions with pyreft.make_examples(dataset, tokenizer)."
                )
        return super()._remove_unused_columns(dataset, description)

    def get_train_dataloader(self) -> Any:
        """The Trainer's, for data sets that have a row.

        Raises:
            ValueError: If the data set is empty.
        """
        if has_length(self.train_dataset) and len(self.train_dataset) == 0:
            raise ValueError("the train_dataset is empty.")
        return super().get_train_dataloader()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; says so if threads of a CPU are in each other's way."""
        if self.args.device.type == "cpu":
            warn_if_threads_wait()
        return super().train(*args, **kwargs)

    def _check_ratios(self, ratios: Mapping[str, float]) -> None:
        if self.optimizer is not None:
            raise ValueError(
                "learning_rate_ratios apply to the Trainer's own optimizer, and `optimizers` was "
                "passed: build that one with pyreft.parameter_groups(model, learning_rate, ratios)."
            )
        # Say now, rather than when training begins, what is wrong with them.
        parameter_groups(self.model, 1.0, ratios)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, its parameter groups split where roles have rates of their own."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made_here and self.learning_rate_ratios:
            split_groups(optimizer, self.model, self.learning_rate_ratios)
        return optimizer

    # ---- one step -----------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One step of the Trainer's.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        require_finite(loss, self.state.global_step + 1, inputs, inputs.get("id"))
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The Trainer's, of a batch that has positions, tokens and labels as it must.

        The model is told where prompts end also where the Trainer keeps the labels to itself.

        Raises:
            ValueError: If a label is that of no class, or the model has no embedding of a token.
        """
        inputs = without_leading_pad({n: value for n, value in inputs.items() if n != "id"})
        open_ended = any(c.positions is None for c in self.model.reft_config.representations)
        located = "intervention_locations" in inputs
        self._located |= located
        if open_ended and not located:
            inputs = {**inputs, "positions": "all"}
            self._say_every_token()
        labels, continues = inputs.get("labels"), self.model.can_generate()
        require_tokens(self.model.model, inputs)
        if isinstance(labels, Tensor):
            require_labels(self.model.model, labels)
        if self._takes_labels and isinstance(labels, Tensor) and continues:
            inputs = self._tell_completion(inputs, labels)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _say_every_token(self) -> None:
        """Neither config nor batch has positions, where upstream edits every token.

        A run all of whose batches are such records it, so that the adapter acts so when loaded.
        """
        logger.warning_once(
            "The config leaves positions to the batch, and the batch has none: every token is "
            'edited, positions="all". Say positions in the config ("f7+l7") if others are meant.'
        )
        if self.model.training and not self._located:
            configs = self.model.reft_config.representations
            self.model.record_positions([c.positions or PositionSpec.parse("all") for c in configs])

    def _tell_completion(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """The inputs with what labels would tell a model that does not get them."""
        told: dict[str, Any] = {}
        if self.model.config.is_encoder_decoder:
            if inputs.get("decoder_input_ids") is None:
                made = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
                told["decoder_input_ids"] = made
        elif "input_ids" not in inputs or labels.shape != inputs["input_ids"].shape:
            return inputs
        if "completion_mask" not in inputs:
            told["completion_mask"] = labels != -100
        return {**inputs, **told}

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """The Trainer's, without the ids of examples."""
        inputs = without_leading_pad({n: value for n, value in inputs.items() if n != "id"})
        generates = getattr(self.args, "predict_with_generate", False)
        self._loss_only = not self.reads_outputs and bool(prediction_loss_only or generates)
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_only = False

    # ---- around a run -------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the size and the orthonormality of the interventions."""
        if "loss" in logs:
            logs = {**logs, **describe_interventions(self.model.interventions)}
        super().log(logs, *args, **kwargs)

    def _warn_if_unsaveable(self) -> None:
        """Say at the start of a run, not at its first checkpoint, that it cannot be saved."""
        try:
            self.model.reft_config.to_dict()
        except ValueError as error:
            logger.warning(f"This run will fail when it saves: {error}")

    def _warn_if_frozen(self) -> None:
        """Say what was made to learn and does not: the head of a classifier, a LoRA."""
        if frozen_lora(self.model.model):
            logger.warning(
                "The LoRA of the base model is frozen, and is neither trained nor saved. To train "
                "it, wrap the model with get_reft_model(..., disable_model_grads=False)."
            )
        if heads := frozen_heads(self.model.model):
            logger.warning(
                f"The head of {type(self.model.model).__name__} is frozen ({', '.join(heads)}). "
                "Unless it was trained before, train it with the interventions: "
                f"ReftConfig(..., modules_to_save={heads})."
            )


class ReftTrainerForCausalLM(ReftTrainer):
    """Upstream's name for the trainer of causal language models."""


class ReftTrainerForCausalLMDistributed(ReftTrainer):
    """Upstream's name for the trainer in several processes, which `ReftTrainer` is as well."""


class ReftTrainerForSequenceClassification(ReftTrainer):
    """Upstream's name for the trainer of classifiers, whose loss is the base model's own."""
