"""ReftTrainer and its tasks."""

from pyreft.training.checkpoints import AdapterCheckpoints
from pyreft.training.distributed import shard_only_frozen
from pyreft.training.rates import parameter_groups
from pyreft.training.reward import ReftTrainerForRewardModeling
from pyreft.training.trainer import (
    ReftTrainer,
    ReftTrainerForCausalLM,
    ReftTrainerForCausalLMDistributed,
    ReftTrainerForSequenceClassification,
)

__all__ = [
    "AdapterCheckpoints",
    "ReftTrainer",
    "ReftTrainerForCausalLM",
    "ReftTrainerForCausalLMDistributed",
    "ReftTrainerForRewardModeling",
    "ReftTrainerForSequenceClassification",
    "parameter_groups",
    "shard_only_frozen",
]
