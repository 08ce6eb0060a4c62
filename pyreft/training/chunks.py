"""The sum of the losses of tokens, a chunk of their logits at a time.

    hidden (N, D) --head--> logits (n, V) --> loss, and the gradient of these n hidden states

The gradient is taken back to the hidden states before the next chunk, so that nothing as wide as
the vocabulary is kept for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

# Gradients of a sum over tokens are kept; in float16 small ones would be lost.
_FLOAT16_SCALE = 2.0**10


class _Context(Protocol):
    """What a function keeps for its backward."""

    saved_tensors: tuple[Tensor, ...]
    scale: float
    dtypes: list[torch.dtype]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class ChunkedLoss(torch.autograd.Function):
    """The sum of the losses of tokens: score, trains, (N,), n, (N, D), ... -> ().

    The logits of a chunk are computed once: their gradient is taken back through the head at once,
    and its sums for the hidden states and the trainable parameters of the head are all that is
    kept. `trains` is whether there is a backward.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        score: Callable[[Tensor], Tensor],
        trains: bool,
        targets: Tensor,
        rows: int,
        hidden: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=targets.device)
        scale = _FLOAT16_SCALE if hidden.dtype == torch.float16 else 1.0
        of_hidden = torch.zeros_like(hidden)
        of_trained = [torch.zeros_like(p, dtype=torch.float32) for p in trained]
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            # Hooks that pack what is kept for backward, to offload it, need not pack this.
            with torch.set_grad_enabled(trains), saved_tensors_hooks(_same, _same):
                chunk = hidden[part].detach().requires_grad_(trains)
                logits = score(chunk)
                loss = nn.functional.cross_entropy(logits, targets[part], reduction="sum")
                scaled = loss * scale
            total += loss.detach()
            del logits, loss
            if trains:
                grad, *grads = torch.autograd.grad(scaled, [chunk, *trained])
                of_hidden[part] = grad
                for one, more in zip(of_trained, grads, strict=True):
                    one += more
        ctx.scale = scale
        ctx.save_for_backward(of_hidden, *of_trained)
        ctx.dtypes = [p.dtype for p in trained]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_trained = ctx.saved_tensors
        factor = grad / ctx.scale
        grads = [
            (one * factor.to(one.device)).to(dtype)
            for one, dtype in zip(of_trained, ctx.dtypes, strict=True)
        ]
        return None, None, None, None, of_hidden * factor.to(of_hidden.device), *grads


class PlainChunkedLoss(torch.autograd.Function):
    """The same for a frozen matrix (V, D) as the head: (V, D), trains, (N,), n, v, (N, D) -> ().

    A tile of logits, of n tokens and v words, is used for the loss and for the gradient, and is
    not kept. Words come one tile after the other, so sums of exponentials are relative to the
    highest logit seen so far, and are scaled when a higher one comes (Milakov and Gimelshein, 2018,
    arXiv 1805.02867). Where a tile fits in a cache, most of what a head costs beside its matmuls,
    writing to memory, is spared.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        weight: Tensor,
        trains: bool,
        targets: Tensor,
        rows: int,
        words: int,
        hidden: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=targets.device)
        of_hidden = torch.zeros_like(hidden) if trains else None
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            grad = None if of_hidden is None else of_hidden[part]
            total += _by_tiles(weight, targets[part, None], words, hidden[part], grad)
        ctx.save_for_backward(of_hidden)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (of_hidden,) = ctx.saved_tensors
        return None, None, None, None, None, of_hidden * grad.to(of_hidden.device)


chunked_loss: Callable[..., Tensor] = ChunkedLoss.apply
plain_chunked_loss: Callable[..., Tensor] = PlainChunkedLoss.apply


def _by_tiles(
    weight: Tensor, targets: Tensor, words: int, hidden: Tensor, grad: Tensor | None
) -> Tensor:
    """The sum of the losses of (n, D) hidden states for (n, 1) targets.

    Its gradient is added to `grad` (n, D), which is zero, if there is one.
    """
    highest = hidden.new_full((len(hidden), 1), -torch.inf)
    sums, right = torch.zeros_like(highest), torch.zeros_like(highest)
    for start in range(0, len(weight), words):
        tile = weight[start : start + words]
        logits = nn.functional.linear(hidden, tile)  # (n, v)
        index = targets - start
        found = logits.gather(1, index.clamp(0, len(tile) - 1))
        right = torch.where((index >= 0) & (index < len(tile)), found, right)
        higher = torch.maximum(highest, logits.amax(1, keepdim=True))
        scale = (highest - higher).exp_()
        likely, highest = logits.sub_(higher).exp_(), higher
        sums = sums * scale + likely.sum(1, keepdim=True)
        if grad is not None:
            # The average of the words, each by its probability.
            grad.mul_(scale).add_(likely @ tile)
    if grad is not None:
        grad.div_(sums).sub_(weight[targets[:, 0]])
    return (sums.log() + highest - right).sum()


def _same(tensor: Tensor) -> Tensor:
    return tensor
