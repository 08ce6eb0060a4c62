"""Attention from the few tokens of a window to many earlier tokens.

    softmax(Q K^T s + mask) V      Q (B, H, W, width), K and V (B, G, P + W, width)

H / G heads share keys and values. Fused kernels on a CPU need a copy of these for each head, and
write gradients of all of them. If W is small, computing the scores takes less memory and time, and
the gradients of the first P keys and values, which are frozen, are not computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from pyreft.installed.attention_functions import (
    attending_by,
    attention_can_be_registered,
    attention_of,
    register_attention,
    sdpa,
    takes_registered,
)

_NAME = "pyreft_window"


class _Here(threading.local):
    """Whether this thread is inside `attending`: other threads may need gradients of a prefix."""

    inside = False


_HERE = _Here()


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute the same as transformers' "sdpa", with its arguments.

    Args:
        module: The attention module.
        query: (B, H, W, width).
        key, value: (B, G, P + W, width).
        attention_mask: (B or 1, H or 1, W, P + W); bool (false is masked), or added to the scores.
        dropout, scaling, **kwargs: As for "sdpa".

    Returns:
        (B, W, H, width), and None for the attention weights.
    """
    window, width, length = query.shape[2], query.shape[3], key.shape[2]
    # Scores that take no more memory than a copy of keys and values for each head.
    small = window <= 2 * width and window < length
    # In half precision, scores would be rounded before they are summed.
    exact = query.dtype == key.dtype == value.dtype in (torch.float32, torch.float64)
    exact = exact and not torch.is_autocast_enabled(query.device.type)
    plain = not dropout and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    masked = attention_mask is not None and attention_mask.shape[1] == 1
    if attention_mask is None or not (_HERE.inside and small and exact and plain and masked):
        attend: Callable[..., tuple[Tensor, None]] = sdpa()
        return attend(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    mask = attention_mask[:, :, None]
    if mask.dtype == torch.bool:
        hidden = torch.finfo(query.dtype).min
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, hidden)
    scale = width**-0.5 if scaling is None else scaling
    apply: Callable[..., Tensor] = _Attend.apply
    return apply(query, key, value, mask, scale).transpose(1, 2).contiguous(), None


class _Context(Protocol):
    """What `_Attend` stores for its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    scale: float

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Attend(torch.autograd.Function):
    """(B, H, W, width), (B, G, P + W, width) twice, mask, s -> (B, H, W, width).

    The prefix is frozen: its keys and values get a zero gradient, which is not computed.
    """

    @staticmethod
    def forward(
        ctx: _Context, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        batch, heads, window, width = query.shape
        groups, length = key.shape[1:3]
        queries = query.reshape(batch, groups, heads // groups * window, width) * scale
        scores = queries @ key.mT
        scores.view(batch, groups, heads // groups, window, length).add_(mask)
        weights = torch.softmax(scores, dim=-1)
        attended = weights @ value
        ctx.scale = scale
        ctx.save_for_backward(queries, key, value, weights, attended)
        return attended.view(batch, heads, window, value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, key, value, weights, attended = ctx.saved_tensors
        batch, heads, window, _ = grad.shape
        prefix = key.shape[2] - window
        grad = grad.reshape(attended.shape)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        of_value[:, :, prefix:] = weights[..., prefix:].mT @ grad
        of_scores = grad @ value.mT
        of_scores.sub_((grad * attended).sum(-1, keepdim=True)).mul_(weights)
        of_key[:, :, prefix:] = of_scores[..., prefix:].mT @ queries
        of_query = (of_scores @ key).mul_(ctx.scale)
        return of_query.view(batch, heads, window, -1), of_key, of_value, None, None


if attention_can_be_registered.holds:
    register_attention(_NAME, window_attention)


@contextmanager
def attending(base: PreTrainedModel) -> Iterator[None]:
    """Use `window_attention` inside the block, if the model uses "sdpa" and is on a CPU."""
    here = base.device.type == "cpu" and attention_can_be_registered.holds
    # Some models check the name of the attention, and compute something else.
    if not here or attention_of(base.config) != "sdpa" or not takes_registered(base):
        yield
        return
    with attending_by(base.config, _NAME), attending_here():
        yield


@contextmanager
def attending_here() -> Iterator[None]:
    """Let `window_attention` use its own kernel in this thread inside the block."""
    _HERE.inside = True
    try:
        yield
    finally:
        _HERE.inside = False
