"""The trainers."""

from pyreft.training.distributed import shard_only_frozen
from pyreft.training.trainer import ReftTrainer, ReftTrainerForCausalLM

__all__ = ["ReftTrainer", "ReftTrainerForCausalLM", "shard_only_frozen"]
