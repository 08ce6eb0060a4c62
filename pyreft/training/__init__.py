"""ReftTrainer and its tasks."""

from pyreft.training.checkpoints import AdapterCheckpoints
from pyreft.training.distributed import shard_only_frozen
from pyreft.training.rates import parameter_groups
from pyreft.training.recommended import Recommended, recommended
from pyreft.training.reward import ReftTrainerForRewardModeling
from pyreft.training.trainer import ReftTrainer
from pyreft.training.upstream import (
    ReftTrainerForCausalLM,
    ReftTrainerForCausalLMDistributed,
    ReftTrainerForSequenceClassification,
)

__all__ = [
    "AdapterCheckpoints",
    "Recommended",
    "ReftTrainer",
    "ReftTrainerForCausalLM",
    "ReftTrainerForCausalLMDistributed",
    "ReftTrainerForRewardModeling",
    "ReftTrainerForSequenceClassification",
    "parameter_groups",
    "recommended",
    "shard_only_frozen",
]
