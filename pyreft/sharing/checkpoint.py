"""What a checkpoint is: the names of its files, and what they hold.

A checkpoint is data. Nothing in it names code, and nothing in it is run. The format is described
in docs/checkpoint_format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyreft.config import ReftConfig

CONFIG_NAME = "reft_config.json"
WEIGHTS_NAME = "reft_model.safetensors"
# PEFT's own files of a LoRA, which we write for PEFT and never read.
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
FORMAT_VERSION = "2.0"
# Of the config, in bytes. One intervention takes about 500.
MAX_CONFIG = 4_000_000
# Before the names of tensors: trained ones of the base model, and those of PEFT's LoRA.
OF_BASE, OF_LORA = "base_model.", "peft."


class AdapterError(ValueError):
    """A directory that cannot be read as an adapter, or must not be written as one.

    Also what the Hub refuses, and an adapter that does not fit its base model.
    """

    def __init__(self, message: str) -> None:
        # It may quote untrusted text.
        super().__init__(message if len(message) <= 2000 else f"{message[:2000]} ...")


@dataclass(frozen=True)
class Adapter:
    """What a checkpoint holds.

    Args:
        config: The interventions.
        tensors: Their parameters by name, "<key of the intervention>.<name in the module>";
            trained tensors of the base model, "base_model.<name in the base model>"; tensors of a
            LoRA of PEFT's, "peft.<PEFT's name>".
        base: What is said of the base model, see `pyreft.base_model.description`.
        origin: Where it was read from.
        lora: The config of the LoRA that was trained with the interventions, or None.
    """

    config: ReftConfig
    tensors: dict[str, Tensor]
    base: dict[str, Any]
    origin: str = ""
    lora: dict[str, Any] | None = None
