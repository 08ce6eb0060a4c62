"""The trainer in several processes: the base model may be sharded, what is trained is replicated.

The Trainer takes a model under FSDP2 for one that is trained whole. Here the shards are frozen, so
that checkpoints are written as those of a single process, with nothing to gather.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from pyreft.modeling import ReftModel

logger = logging.get_logger(__name__)


class ReplicatedAdapter(Trainer):
    """The part of `ReftTrainer` that shards the base model, and nothing of its adapter."""

    model: Any

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.ddp_find_unused_parameters is None:
            # Each intervention has a gradient in each pass, if it is zero. DDP would warn of its
            # search in vain, and cannot search under reentrant gradient checkpointing.
            self.args.ddp_find_unused_parameters = False
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            logger.warning(
                f"accelerate does not shard models on {self.args.device.type}: each process has "
                "the whole base model, and `fsdp` changes nothing else."
            )

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self._without_fsdp():
            super().save_model(*args, **kwargs)

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            shard_only_frozen(self.accelerator, self.model)
        return super()._wrap_model(model, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._without_fsdp():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._without_fsdp():
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _without_fsdp(self) -> Iterator[None]:
        """Read and write files as if nothing were sharded: nothing in them is."""
        before, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            yield
        finally:
            self.is_fsdp_enabled = before


def shard_only_frozen(accelerator: Accelerator, model: ReftModel) -> None:
    """Tell accelerate, before it prepares the model, to shard no parameter that is trained.

    Interventions are some kilobytes, and an orthonormal factor needs its whole matrix.

    Args:
        accelerator: One with an FSDP plugin.
        model: The model that it will prepare.

    Raises:
        ValueError: If the plugin asks for what does not go with this.
    """
    plugin = accelerator.state.fsdp_plugin
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError(
            "a ReftModel is sharded by FSDP2, not by FSDP1, which flattens parameters: set "
            'fsdp_config={"version": 2}, or fsdp_version: 2 in the accelerate config.'
        )
    if plugin.cpu_ram_efficient_loading:
        # accelerate then moves the whole model to the meta device, and fills in shards only.
        raise ValueError(
            "cpu_ram_efficient_loading does not go with replicated interventions: set "
            'fsdp_config={"cpu_ram_efficient_loading": False}, or '
            "fsdp_cpu_ram_efficient_loading: false in the accelerate config."
        )
    trained = nn.ParameterList(p for p in model.model.parameters() if p.requires_grad)
    # FSDP moves to the device what it shards, and leaves the rest where it is.
    model.interventions.to(accelerator.device)
    with torch.no_grad():
        for parameter in trained:
            parameter.data = parameter.data.to(accelerator.device)
    plugin.ignored_modules = [model.interventions, trained]
