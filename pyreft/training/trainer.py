"""The transformers Trainer for a `ReftModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput, has_length

from pyreft.adapters import EditedModel
from pyreft.annotations import Example, Inputs
from pyreft.data.collator import ReftDataCollator
from pyreft.installed.trainer_methods import trainer_steps_by_methods, without_items
from pyreft.interventions import takes_argument
from pyreft.reuse import FrozenReuse
from pyreft.training import checks, distributed
from pyreft.training.batches import BatchPreparation, record_positions, without_ids
from pyreft.training.checkpoints import AdapterCheckpoints, Trial
from pyreft.training.columns import model_columns, require_columns
from pyreft.training.measures import describe_interventions
from pyreft.training.predictions import GeneratedPredictions, generates, require_generation
from pyreft.training.rates import require_ratios, split_groups
from pyreft.training.reusing import Loss, ReusingLoss, Step, reuse_limits
from pyreft.training.threads import warn_if_threads_wait


class ReftTrainer(AdapterCheckpoints, Trainer):
    """Train a `ReftModel` as the transformers Trainer trains any model.

    Checkpoints hold the adapter in place of the model, and are never half written. Positions that
    the config leaves to the batch are recorded in the adapter, if a pyreft data set has them.
    Training logs also have `intervention_norm` and `orthonormality_error`. With
    `predict_with_generate=True` `compute_metrics` is given what the model generates from prompts.

    Args:
        model: The `ReftModel`.
        *args: As for `transformers.Trainer`, in its order.
        processing_class: The tokenizer; the data collator is by default a `ReftDataCollator` of it.
        tokenizer: Upstream's name for it.
        **kwargs: As for `transformers.Trainer`.
        learning_rate_ratios: How many times the learning rate R, P, W and b have, as
            {"R": 4, "b": 10}; see `pyreft.parameter_groups`.
        reuse_frozen: Compute only what the adapter changes and the loss needs, where that is
            exact: once for an example what no step changes, and the output head on labelled tokens
            alone. The log says what is reused, or why nothing is.
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

    _signature_columns: list[str] | None  # type: ignore[assignment]  # declared as None
    # Whether `compute_loss` takes the number of tokens in a step.
    _takes_items = True
    # Whether it reads more of the outputs than the loss where an evaluation wants that alone. A
    # subclass that has a `compute_loss` of its own and does not may say so.
    reads_outputs = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("compute_loss")
        if own is not None and "reads_outputs" not in vars(cls):
            cls.reads_outputs = True
        if own is not None and not takes_argument(own, "num_items_in_batch"):
            cls._takes_items = False
            cls.compute_loss = without_items(own)  # type: ignore[assignment, method-assign]

    def __init__(
        self,
        model: EditedModel | None = None,
        *args: object,
        tokenizer: PreTrainedTokenizerBase | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        learning_rate_ratios: Mapping[str, float] | None = None,
        reuse_frozen: bool = True,
        reuse_memory: int | str | None = None,
        reuse_disk: str | os.PathLike[str] | None = None,
        **kwargs: object,
    ) -> None:
        trainer_steps_by_methods.require(type(self).__name__)
        checks.require_reft_model(model, type(self).__name__)
        if tokenizer is not None and processing_class is not None:
            raise TypeError("give the tokenizer once: `tokenizer` is `processing_class`.")
        tokenizer = processing_class if tokenizer is None else tokenizer
        if tokenizer is not None:
            kwargs["processing_class"] = tokenizer
            if len(args) < 2 and kwargs.get("data_collator") is None:
                kwargs["data_collator"] = ReftDataCollator(tokenizer=tokenizer, model=model)
        self.learning_rate_ratios = learning_rate_ratios
        self.reuse_frozen = reuse_frozen
        self._limits = reuse_limits(reuse_memory, reuse_disk)
        self._reusing: ReusingLoss | None = None
        self._preparation = BatchPreparation()
        self._predictions = GeneratedPredictions()
        # Whether an evaluation reads nothing of the outputs but the loss.
        self._loss_only = False
        super().__init__(model, *args, **kwargs)
        if not self._takes_items:
            # The Trainer then divides by the number of accumulated batches, as it did.
            self.model_accepts_loss_kwargs = False
        if learning_rate_ratios:
            require_ratios(self.model, self.optimizer, learning_rate_ratios)
        checks.warn_if_unsaveable(self.model)
        checks.warn_if_frozen(self.model.model)
        record_positions(self.model, self.data_collator, self.train_dataset)

    @property
    def reuse(self) -> FrozenReuse | None:
        """After the first step, what is reused, or why nothing is, and a report."""
        return None if self._reusing is None else self._reusing.reuse

    def call_model_init(self, trial: Trial = None) -> EditedModel:
        """The Trainer's: every run of a hyperparameter search has a model of its own."""
        model = super().call_model_init(trial)
        if not isinstance(model, EditedModel):
            raise TypeError(f"model_init must return a ReftModel, got {type(model).__name__}.")
        # The Trainer calls this before it has these.
        record_positions(model, *(vars(self).get(n) for n in ("data_collator", "train_dataset")))
        return model

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the base model takes as well as those of `ReftModel`."""
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and not known:
            self._signature_columns += self._columns_of_model()

    def _columns_of_model(self) -> list[str]:
        return model_columns(self.model, self.data_collator)

    def _remove_unused_columns(
        self, dataset: datasets.Dataset, description: str | None = None
    ) -> datasets.Dataset:
        """The Trainer's, for data sets that have a column to train on."""
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            require_columns(dataset.column_names, self._signature_columns or [], self.model)
        return super()._remove_unused_columns(dataset, description)

    def get_train_dataloader(self) -> DataLoader[Inputs]:
        """The Trainer's, for data sets that have a row."""
        if has_length(self.train_dataset) and len(self.train_dataset) == 0:
            raise ValueError("the train_dataset is empty.")
        return super().get_train_dataloader()

    def create_optimizer(self, *args: object, **kwargs: object) -> Optimizer:
        """The Trainer's, its parameter groups split where roles have rates of their own."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if made_here and self.learning_rate_ratios:
            split_groups(optimizer, self.model, self.learning_rate_ratios)
        return optimizer

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.args.device.type == "cpu":
            warn_if_threads_wait()
        if self._reusing is not None:
            self._reusing.begin()
        with distributed.loading_without_base(self.model):
            return super()._inner_training_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the size and the orthonormality of the interventions."""
        if "loss" in logs:
            logs = {**logs, **describe_interventions(self.model.interventions)}
        super().log(logs, start_time)

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step of the Trainer's, which must have a loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        checks.require_finite(loss, self.state.global_step + 1, inputs, inputs.get("id"))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Loss:
        """The Trainer's, of a batch that is checked, on the part of it that must be computed."""
        own_loss = self.compute_loss_func is not None
        keeps_labels = own_loss or self.label_smoother is not None
        inputs = self._preparation.prepare(self.model, inputs, keeps_labels)
        compute, items = super().compute_loss, num_items_in_batch
        if not self.reuse_frozen:
            return compute(model, inputs, return_outputs, items)
        if self._reusing is None or self._reusing.model is not self.model:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            self._reusing = ReusingLoss(
                self.model, self.accelerator, self.args, sharded=sharded, limits=self._limits
            )
        step = Step(compute, model, inputs, return_outputs=return_outputs, items=items)
        reads = return_outputs and not self._loss_only
        return self._reusing.compute(
            step, reads_outputs=reads, keeps_labels=keeps_labels, own_loss=own_loss
        )

    def evaluate(
        self,
        eval_dataset: object = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation_arguments: object,
    ) -> dict[str, float]:
        """Evaluate as the Trainer does; further arguments are for `generate`."""
        with self._predictions.with_arguments(generation_arguments):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self,
        test_dataset: Dataset[Example],
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **generation_arguments: object,
    ) -> PredictionOutput:
        """Predict as the Trainer does; further arguments are for `generate`."""
        with self._predictions.with_arguments(generation_arguments):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's, on weights that may have changed since the last step."""
        if self._reusing is not None:
            self._reusing.begin()
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The Trainer's; with `predict_with_generate` predictions are what the model generates."""
        inputs, args = without_ids(inputs), self.args
        self._loss_only = not self.reads_outputs and (prediction_loss_only or generates(args))
        try:
            if prediction_loss_only or not generates(args):
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            require_generation(self.model)
            inputs = self._prepare_inputs(inputs)
            labels = inputs.get("labels")
            loss = None if labels is None else super().prediction_step(model, inputs, True)[0]
            # Accelerate casts in `forward` of the ReftModel, which generation does not go through.
            with self.accelerator.autocast():
                return loss, self._predictions.generate(self.model, inputs, args), labels
        finally:
            self._loss_only = False

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; DDP does not search for parameters without a gradient."""
        distributed.set_ddp_default(self.args)
        super().create_accelerator_and_postprocess()
        distributed.warn_if_not_sharded(self.args, self.is_fsdp_enabled)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        distributed.require_placed(model)
        super()._move_model_to_device(model, device)

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        kinds = self.is_fsdp_enabled, self.is_deepspeed_enabled
        distributed.prepare_wrapping(self.accelerator, self.model, *kinds)
        return super()._wrap_model(model, *args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's; what is saved is the adapter, which no process has sharded."""
        with distributed.unsharded(self):
            super().save_model(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            scheduler = self.lr_scheduler if self.args.should_save else None
            distributed.save_deepspeed_state(self.model_wrapped, scheduler, output_dir)
        else:
            with distributed.unsharded(self):
                super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with nullcontext() if self.is_deepspeed_enabled else distributed.unsharded(self):
            super()._load_optimizer_and_scheduler(checkpoint)
