"""The trainers."""

from pyreft.training.trainer import ReftTrainer, ReftTrainerForCausalLM

__all__ = ["ReftTrainer", "ReftTrainerForCausalLM"]
