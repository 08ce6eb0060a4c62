"""The trainer in several processes: the base model may be sharded, what is trained is replicated.

The Trainer takes a model under FSDP2 or ZeRO-3 for one that is trained whole. Here the shards are
frozen, so that adapters are written as those of a single process, with nothing to gather.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.installed.offloading import fsdp_can_ignore_parameters

logger = logging.get_logger(__name__)


def set_ddp_default(args: TrainingArguments) -> None:
    """Let DDP not search for parameters without gradient, unless the user says."""
    if args.ddp_find_unused_parameters is None:
        # Each intervention has a gradient in each pass, if it is zero. DDP would warn of its
        # search in vain, and cannot search under reentrant gradient checkpointing.
        args.ddp_find_unused_parameters = False


def warn_if_not_sharded(args: TrainingArguments, sharded: bool) -> None:
    """Warn if the arguments ask for FSDP and accelerate does not shard."""
    if args.fsdp and not sharded:
        logger.warning(
            f"accelerate does not shard models on {args.device.type}: each process has "
            "the whole base model, and `fsdp` changes nothing else."
        )


def require_placed(model: nn.Module) -> None:
    """Raise ValueError for a model that is offloaded, if the Trainer would move it."""
    placed = getattr(model, "hf_device_map", None) is not None
    if not placed and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the base model is offloaded, and has no device_map, by which the Trainer knows: "
            'load it with from_pretrained(..., device_map="auto").'
        )


@contextmanager
def loading_without_base(model: nn.Module) -> Iterator[None]:
    """Inside the block state dicts may hold the trained parameters alone.

    DeepSpeed resumes inside a run, from checkpoints that hold no base model.
    """
    register: Callable[..., RemovableHandle] = model.register_load_state_dict_post_hook
    hook = register(_allow_no_base)
    try:
        yield
    finally:
        hook.remove()


def prepare_wrapping(
    accelerator: Accelerator, model: EditedModel, fsdp: bool, deepspeed: bool
) -> None:
    """Prepare a model for what wraps it in several processes.

    Args:
        accelerator: What will wrap it.
        model: The model.
        fsdp, deepspeed: Whether accelerate shards it by these.
    """
    if accelerator.num_processes > 1 and torch.distributed.is_initialized():
        # Where R starts. Not all that wraps a model broadcasts buffers, as it does parameters.
        for adapter in model.adapter_set.values():
            for buffer in adapter.interventions.buffers():
                torch.distributed.broadcast(buffer, src=0)
    if fsdp:
        shard_only_frozen(accelerator, model)
    if deepspeed:
        partition_only_frozen(accelerator, model)


@contextmanager
def unsharded(trainer: Trainer) -> Iterator[None]:
    """Read and write files as if nothing were sharded: nothing in them is."""
    before = trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = before


def save_deepspeed_state(engine: nn.Module, scheduler: LRScheduler | None, output_dir: str) -> None:
    """Write DeepSpeed's own files, without the base model, and the scheduler if it is given."""
    assert callable(engine.save_checkpoint), "a DeepSpeedEngine"
    engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
    if scheduler is not None:
        torch.save(scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))


def shard_only_frozen(accelerator: Accelerator, model: EditedModel) -> None:
    """Let accelerate shard no parameter that is trained; before it prepares the model.

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
    """Let DeepSpeed partition nothing that is trained; before accelerate prepares the model.

    ZeRO-3 partitions parameters larger than a threshold, which is raised to the size of the largest
    that is trained. The other stages partition no parameters.

    Args:
        accelerator: One with a DeepSpeed plugin.
        model: The model that it will prepare.

    Raises:
        ValueError: If nothing of the base model would be partitioned, or a part of it that is
            trained was partitioned before the adapter was created.
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
            "the TrainingArguments are created."
        )
    # DeepSpeed's default.
    zero[threshold] = max(zero.get(threshold, 100_000), largest)


class _IncompatibleKeys(Protocol):
    """What torch calls a hook with after a state dict was loaded."""

    missing_keys: list[str]


def _allow_no_base(model: nn.Module, keys: _IncompatibleKeys) -> None:
    """Let a checkpoint be loaded that holds the trained parameters alone."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
