"""Upstream's names for the trainer."""

from pyreft.training.trainer import ReftTrainer


class ReftTrainerForCausalLM(ReftTrainer):
    """Upstream's name for the trainer of causal language models."""


class ReftTrainerForCausalLMDistributed(ReftTrainer):
    """Upstream's name for the trainer in several processes, which `ReftTrainer` is as well."""


class ReftTrainerForSequenceClassification(ReftTrainer):
    """Upstream's name for the trainer of classifiers, whose loss is the base model's own."""
