"""The trainer in several processes: the base model may be sharded, what is trained is replicated.

The Trainer takes a model under FSDP2 or ZeRO-3 for one that is trained whole. Here the shards are
frozen, so that adapters are written as those of a single process, with nothing to gather.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.installed.offloading import fsdp_can_ignore_parameters

logger = logging.get_logger(__name__)


class DistributedMixin(Trainer):
    """The part of `ReftTrainer` that shards the base model, and nothing of its adapter."""

    # What the Trainer declares with types that these do not always have.
    model: Any
    model_wrapped: Any
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; DDP does not search for parameters without a gradient."""
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

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # DeepSpeed resumes inside, from checkpoints that hold no base model.
        hook = self.model.register_load_state_dict_post_hook(_allow_no_base)
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            hook.remove()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's; what is saved is the adapter, which no process has sharded."""
        with self._unsharded():
            super().save_model(*args, **kwargs)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        placed = getattr(model, "hf_device_map", None) is not None
        if not placed and any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "the base model is offloaded, and has no device_map that tells the Trainer so: "
                'load it with from_pretrained(..., device_map="auto").'
            )
        super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.args.world_size > 1 and torch.distributed.is_initialized():
            # Where R starts. Not all that wraps a model takes care of buffers, as of parameters.
            for adapter in self.model.adapters.values():
                for buffer in adapter.interventions.buffers():
                    torch.distributed.broadcast(buffer, src=0)
        if self.is_fsdp_enabled:
            shard_only_frozen(self.accelerator, self.model)
        if self.is_deepspeed_enabled:
            partition_only_frozen(self.accelerator, self.model)
        return super()._wrap_model(model, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            # DeepSpeed's own files, which would hold the base model as well.
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
            if self.args.should_save:
                state = self.lr_scheduler.state_dict()
                torch.save(state, os.path.join(output_dir, SCHEDULER_NAME))
            return
        with self._unsharded():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with nullcontext() if self.is_deepspeed_enabled else self._unsharded():
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _unsharded(self) -> Iterator[None]:
        """Read and write files as if nothing were sharded: nothing in them is."""
        before = self.is_fsdp_enabled, self.is_deepspeed_enabled
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        try:
            yield
        finally:
            self.is_fsdp_enabled, self.is_deepspeed_enabled = before


def shard_only_frozen(accelerator: Accelerator, model: EditedModel) -> None:
    """Tell accelerate, before it prepares the model, to shard no parameter that is trained.

    Interventions are some kilobytes, and an orthonormal factor needs its whole matrix.

    Args:
        accelerator: One with an FSDP plugin.
        model: The model that it will prepare.

    Raises:
        ValueError: If the plugin asks for what does not go with this.
        UnsupportedReleaseError: If FSDP2 of the installed torch shards all parameters.
    """
    fsdp_can_ignore_parameters.require("FSDP2 with interventions that every process has whole")
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
    model.adapters.to(accelerator.device)
    with torch.no_grad():
        for parameter in trained:
            parameter.data = parameter.data.to(accelerator.device)
    plugin.ignored_modules = [model.adapters, trained]


def partition_only_frozen(accelerator: Accelerator, model: EditedModel) -> None:
    """Tell DeepSpeed, before accelerate prepares the model, to partition nothing that is trained.

    ZeRO-3 partitions parameters larger than a threshold, which is raised to the size of the largest
    that is trained. The other stages partition no parameters.

    Args:
        accelerator: One with a DeepSpeed plugin.
        model: The model that it will prepare.

    Raises:
        ValueError: If nothing of the base model would be partitioned, or a part of it that is
            trained was partitioned before the adapter was made.
    """
    zero = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    if zero.get("stage") != 3:
        return
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for parameter in model.parameters():
        # One that is partitioned by now is empty, and knows what it was.
        sizes[parameter.requires_grad].append(getattr(parameter, "ds_numel", parameter.numel()))
    largest, threshold = max(sizes[True], default=0), "stage3_param_persistence_threshold"
    if largest >= max(sizes[False], default=0):
        raise ValueError(
            "ZeRO-3 leaves whole what is no larger than the largest parameter that is trained, "
            f"which has {largest} elements: that is all of this base model. Use ZeRO-2, or FSDP2."
        )
    if any(original.numel() == 0 for original in model.trained.buffers()):
        raise ValueError(
            "under ZeRO-3 modules_to_save needs a base model that was loaded whole: load it before "
            "the TrainingArguments are made."
        )
    # What DeepSpeed takes if it is told none.
    zero[threshold] = max(zero.get(threshold, 100_000), largest)


def _allow_no_base(model: nn.Module, keys: Any) -> None:
    """Let a checkpoint be loaded that holds the trained parameters alone."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
