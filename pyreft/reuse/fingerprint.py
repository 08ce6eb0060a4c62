"""Fingerprints of everything that states of examples depend on, except their tokens."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.installed.attention_functions import attention_of
from pyreft.installed.modules import stored_tensors, versions_of

# The number of values read per tensor; reading all would take too long.
_SAMPLES = 64


def versions(base: nn.Module) -> Hashable:
    """A value that changes when a frozen tensor of the model is replaced or written in place.

    Fast enough to compute in every step.
    """
    frozen = _frozen(base)
    return tuple(zip((tensor.data_ptr() for tensor in frozen), versions_of(frozen), strict=True))


@torch.no_grad()
def contents(base: PreTrainedModel) -> Hashable:
    """A value that changes with the model's config and with some values of each frozen tensor.

    Writes to `tensor.data` leave no trace in `versions`; use this at the beginning of a run.
    """
    read = []
    for tensor in _frozen(base):
        flat = tensor.detach().reshape(-1)
        read.append(flat[:: max(1, len(flat) // _SAMPLES)].double().sum().cpu())
    values = torch.stack(read).numpy().tobytes() if read else b""
    return values, attention_of(base.config), repr(base.config.to_dict())


def _frozen(base: nn.Module) -> list[Tensor]:
    tensors = (*base.parameters(), *base.buffers())
    return stored_tensors([tensor for tensor in tensors if not tensor.requires_grad])
