"""Products with frozen matrices on a CPU, in float32.

    Y = X W^T        X (..., K), W (M, K)        the gradient of X is that of Y times W

torch makes such a product with MKL, except in compiled code, where it calls oneDNN. On an AMD EPYC
with AVX-512, MKL took an eighth longer; other CPUs were not measured. The operator is that of
compiled code, which has no gradient of its own: W is frozen, so the one of X is all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pyreft.installed.products import onednn_linear, onednn_multiplies
from pyreft.reuse.layers import replaced
from pyreft.reuse.plan import is_checkpointed


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (..., K), W (M, K), b (M,) -> X W^T + b (..., M), by oneDNN where that can be."""
    product = _Product.apply if _usable(x, weight, bias) else nn.functional.linear
    return product(x, weight, bias)


class _Product(torch.autograd.Function):
    """X, W, b -> X W^T + b, where W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return multiply(grad, weight.T), None, None


def multiplying(base: Any) -> AbstractContextManager[None]:
    """Let the frozen linear maps of a model on a CPU multiply so, in this thread, in the block.

    Its output head is left alone: losses have their own way with it. So is a model that runs
    parts of itself again in backward, behind the block, and must find the same there.
    """
    if base.device.type != "cpu":
        return nullcontext()
    head, modules = base.get_output_embeddings(), list(base.modules())
    if is_checkpointed(modules):
        return nullcontext()
    forwards: dict[nn.Module, Callable[..., Any]] = {
        module: partial(_FORWARDS[type(module)], module)
        for module in modules
        if type(module) in _FORWARDS and module is not head and "forward" not in vars(module)
    }
    return replaced(forwards)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return multiply(x, module.weight, module.bias)


def _conv1d(module: Conv1D, x: Tensor) -> Tensor:
    return multiply(x, module.weight.T, module.bias)


_FORWARDS: dict[type, Callable[..., Any]] = {nn.Linear: _linear, Conv1D: _conv1d}


def _usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not (onednn_multiplies.holds and torch.backends.mkldnn.enabled) or torch.is_autocast_enabled(
        "cpu"
    ):
        return False
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    return _plain(x) and _plain(weight) and (bias is None or _plain(bias))


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory: classes of others may be quantised, or in shards."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
