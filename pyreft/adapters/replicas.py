"""Every process has all trained parameters, also if the base model is sharded over processes.

    FSDP2      frozen parameters of the base model, one shard of each per process
    Replicas   interventions and all other trained parameters, complete in each process

FSDP averages only the gradients of parameters that it shards. DDP averages all gradients itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyreft.installed.modules import after_backward, current_backward


class Replicas:
    """Keeps the trained parameters of a model equal in all processes.

    They start from the values in the first process, as frozen interventions do, and after each
    backward pass their gradients are averaged. Averaging equal gradients again changes nothing, so
    the number of accumulated passes does not matter, nor whether other code averages them too.
    """

    def __init__(self) -> None:
        self._equal = False
        # The backward pass that was last registered to average at its end.
        self._backward = -1

    def before_forward(self, model: nn.Module) -> bool:
        """Make them equal, once the model is sharded; only the first time.

        Returns:
            Whether it is sharded, so that `average_after_backward` is needed.
        """
        sharded = _is_sharded(model)
        if sharded and not self._equal:
            self._equal = True
            adapters = model.get_submodule("adapters")
            frozen = (p for p in adapters.parameters() if not p.requires_grad)
            for tensor in (*replicated(model), *frozen, *adapters.buffers()):
                dist.broadcast(tensor.detach(), src=0)
        return sharded

    def average_after_backward(self, model: nn.Module, outputs: Iterable[Tensor]) -> None:
        """Average gradients at the end of the backward pass.

        Args:
            model: The model.
            outputs: The tensors that it returned; their gradients are computed first.
        """

        def average_at_end(grad: Tensor) -> None:
            backward = current_backward()
            if backward != self._backward:
                self._backward = backward
                after_backward(lambda: average_gradients(replicated(model)))

        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(average_at_end)


def replicated(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters that are not sharded."""
    return [p for p in model.parameters() if p.requires_grad and not _is_shard(p)]


def require_whole(model: nn.Module) -> None:
    """Refuse a model if this process has only shards of its interventions.

    Raises:
        ValueError: If FSDP2 was not configured to ignore them.
    """
    if any(_is_shard(parameter) for parameter in model.parameters()):
        raise ValueError(
            "the interventions are sharded over the processes, so no process has a complete one "
            "to save. Train with ReftTrainer, or call pyreft.shard_only_frozen(accelerator, model) "
            "before accelerator.prepare, or fully_shard only the base model."
        )


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes in one call; None in all processes stays None."""
    wide = torch.float32
    for parameter in parameters:
        wide = torch.promote_types(wide, parameter.dtype)
    used = torch.tensor([p.grad is not None for p in parameters], dtype=wide)
    parts = [used.to(parameters[0].device)]
    parts += [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([part.to(wide) for part in parts])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    anywhere, *averages = flat.split([part.numel() for part in parts])
    for parameter, count, average in zip(parameters, anywhere.tolist(), averages, strict=True):
        if count:
            parameter.grad = average.view_as(parameter).to(parameter.dtype)


def _is_shard(parameter: nn.Parameter) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _is_sharded(model: nn.Module) -> bool:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())
