"""The files of a checkpoint and their content.

A checkpoint is data. Nothing in it names code, and nothing in it is run. The format is described
in docs/checkpoint_format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyreft.annotations import Json
from pyreft.config import ReftConfig
from pyreft.config.groups import group_alike, table_of
from pyreft.config.shown import edits_html
from pyreft.tables import heading, printable

CONFIG_NAME = "reft_config.json"
WEIGHTS_NAME = "reft_model.safetensors"
# The files of PEFT's LoRA. They are written for PEFT and never read here.
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
FORMAT_VERSION = "2.0"
# The largest size of the config, in bytes. One intervention takes about 500.
MAX_CONFIG = 4_000_000
# Prefixes of names of tensors: trained ones of the base model, and those of PEFT's LoRA.
OF_BASE, OF_LORA = "base_model.", "peft."


class AdapterError(ValueError):
    """A directory that cannot be read as an adapter, or must not be written as one.

    Also what the Hub refuses, and an adapter that does not fit its base model.
    """

    def __init__(self, message: str) -> None:
        # It may quote untrusted text.
        super().__init__(message if len(message) <= 2000 else f"{message[:2000]} ...")


@dataclass(frozen=True, repr=False)
class Adapter:
    """The content of a checkpoint.

    Args:
        config: The interventions.
        tensors: Their parameters by name, "<key of the intervention>.<name in the module>";
            trained tensors of the base model, "base_model.<name in the base model>"; tensors of
            PEFT's LoRA, "peft.<PEFT's name>".
        base: The description of the base model, see `pyreft.base_model.description`.
        origin: The directory or file that it was read from.
        lora: The config of the LoRA that was trained with the interventions, or None.
    """

    config: ReftConfig
    tensors: dict[str, Tensor]
    base: Json
    origin: str = ""
    lora: Json | None = None

    def __repr__(self) -> str:
        table = str(table_of(group_alike(self.config.representations)))
        return "\n".join([f"{self._title()}:", *(f"  {line}" for line in table.splitlines())])

    def _repr_html_(self) -> str:
        layers, decoder = (self.base.get(f"num_{part}_layers") for part in ("hidden", "decoder"))
        return heading(self._title()) + edits_html(self.config, layers, decoder)

    def _title(self) -> str:
        # Only the last part of the path of a base model, because the rest is private.
        base = str(self.base.get("name_or_path") or self.base.get("model_type"))
        shown = Path(base).name if Path(base).is_absolute() else base
        return printable(f"Adapter {self.origin} for {shown}, {len(self.tensors)} tensors")
