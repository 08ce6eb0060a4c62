"""Reward models: a score that ranks the better of two answers first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import EvalPrediction

from pyreft.adapters import EditedModel
from pyreft.annotations import Inputs
from pyreft.data.rewards import PAIR_COLUMNS, ReftRewardCollator
from pyreft.training.reusing import Loss
from pyreft.training.trainer import ReftTrainer


class ReftTrainerForRewardModeling(ReftTrainer):
    """Train a reward model on pairs, with the Bradley-Terry loss.

        loss = mean over pairs of -log sigmoid(score(chosen) - score(rejected))

    The base model is one of `AutoModelForSequenceClassification` with one label. Its head is
    usually new, and so to be trained: `ReftConfig(modules_to_save=["score"])` (of BERT,
    "classifier").

    `evaluate` gives eval_accuracy, the share of pairs whose chosen answer scores higher, unless
    other `compute_metrics` are passed. Predictions are (N, 2) scores, chosen and rejected.

    Source: Bradley and Terry 1952; as a loss, Ouyang et al. 2022, arXiv 2203.02155, eq. 1.

    Args:
        model: The `ReftModel`.
        *args: As for `ReftTrainer`, in its order.
        **kwargs: As for `ReftTrainer`. Each data set is a `ReftRewardDataset`; the default data
            collator is a `ReftRewardCollator`, and the default `compute_loss_func` is
            `bradley_terry`.

    Raises:
        ValueError: If the base model has not exactly one label, or there is no tokenizer to pad
            with.
    """

    # Scores are the logits of texts, which an evaluation of the loss alone computes too.
    reads_outputs = False

    def __init__(self, model: EditedModel | None = None, *args: object, **kwargs: Any) -> None:
        tokenizer = kwargs.get("tokenizer") or kwargs.get("processing_class")
        if len(args) < 2 and kwargs.get("data_collator") is None:
            if tokenizer is None:
                raise ValueError("give a processing_class, or a ReftRewardCollator as collator.")
            kwargs["data_collator"] = ReftRewardCollator(tokenizer)
        super().__init__(model, *args, **kwargs)
        if self.model.config.num_labels != 1:
            raise ValueError(
                f"a reward model has one label, this base model has {self.model.config.num_labels}:"
                " load it with AutoModelForSequenceClassification.from_pretrained(..., "
                "num_labels=1)."
            )
        # With a loss function of its own the Trainer counts labels, one a pair, and scales by
        # them: so that accumulated batches equal a large one, whatever their sizes.
        self.compute_loss_func = self.compute_loss_func or bradley_terry
        self.compute_metrics = self.compute_metrics or pair_accuracy

    def _columns_of_model(self) -> list[str]:
        """Also the columns of pairs, which the collator reads and not the model."""
        ids = ["id"] if isinstance(self.data_collator, ReftRewardCollator) else []
        return [*super()._columns_of_model(), *PAIR_COLUMNS, *ids]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Loss:
        """The loss of a batch of pairs; the outputs are the (B, 2) scores."""
        inputs = {name: value for name, value in inputs.items() if name != "reward"}
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        return (loss, {"scores": scores(outputs)}) if return_outputs else loss


def scores(outputs: Mapping[str, Tensor]) -> Tensor:
    """The scores of interleaved pairs, (2B, 1) logits -> (B, 2), chosen and rejected."""
    return outputs["logits"].float().view(-1, 2)


def bradley_terry(
    outputs: Mapping[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """-log sigmoid(chosen - rejected), the mean over pairs.

    Args:
        outputs: Of the base model, with the logits (2B, 1) of interleaved pairs.
        labels: (B,), not read: a pair is ordered already.
        num_items_in_batch: Number of pairs to divide the sum by, if it is not B.
    """
    chosen, rejected = scores(outputs).unbind(1)
    losses = -logsigmoid(chosen - rejected)
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def pair_accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The share of pairs whose chosen answer scores higher."""
    chosen, rejected = np.asarray(predicted.predictions).T
    return {"accuracy": float((chosen > rejected).mean())}
