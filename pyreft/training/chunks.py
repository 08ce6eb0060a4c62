"""The sum of the losses of tokens, a chunk of their logits at a time.

    hidden (N, D) --head--> logits (n, V) --> loss, and the gradient of these n hidden states

The gradient is taken back to the hidden states before the next chunk, so that nothing as wide as
the vocabulary is kept for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

# Gradients of a sum over tokens are kept; in float16 small ones would be lost.
_FLOAT16_SCALE = 2.0**10


class ChunkedLoss(torch.autograd.Function):
    """The sum of the losses of tokens: score, whether to learn, (N,), n, (N, D), ... -> ().

    The logits of a chunk are made once: their gradient is taken back through the head at once,
    and its sum for the hidden states and for what the head learns is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        score: Callable[[Tensor], Tensor],
        learns: bool,
        targets: Tensor,
        rows: int,
        hidden: Tensor,
        *learned: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=targets.device)
        scale = _FLOAT16_SCALE if hidden.dtype == torch.float16 else 1.0
        of_hidden = torch.zeros_like(hidden)
        of_learned = [torch.zeros_like(p, dtype=torch.float32) for p in learned]
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            # Whoever packs what is kept for backward, to offload it, has no use for what is not.
            with torch.set_grad_enabled(learns), saved_tensors_hooks(_same, _same):
                chunk = hidden[part].detach().requires_grad_(learns)
                logits = score(chunk)
                loss = nn.functional.cross_entropy(logits, targets[part], reduction="sum")
                scaled = loss * scale
            total += loss.detach()
            del logits, loss
            if learns:
                grad, *grads = torch.autograd.grad(scaled, [chunk, *learned])
                of_hidden[part] = grad
                for one, more in zip(of_learned, grads, strict=True):
                    one += more
        ctx.scale = scale
        ctx.save_for_backward(of_hidden, *of_learned)
        ctx.dtypes = [p.dtype for p in learned]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_hidden, *of_learned = ctx.saved_tensors
        factor = grad / ctx.scale
        grads = [
            (one * factor.to(one.device)).to(dtype)
            for one, dtype in zip(of_learned, ctx.dtypes, strict=True)
        ]
        return None, None, None, None, of_hidden * factor.to(of_hidden.device), *grads


class PlainChunkedLoss(torch.autograd.Function):
    """The same for a frozen matrix (V, D) as the head: (V, D), (N,), n, (N, D) -> ().

    The logits of a chunk become their own gradient in place, so that nothing else of their size is
    made: most of the time of a head goes into writing to memory.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, targets: Tensor, rows: int, hidden: Tensor) -> Tensor:
        total = torch.zeros((), device=targets.device)
        of_hidden = torch.empty_like(hidden)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            target = targets[part, None]
            logits = hidden[part] @ weight.T  # (n, V)
            highest, right = logits.amax(1, keepdim=True), logits.gather(1, target)
            sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
            total += (sums.log() + highest - right).sum()
            logits.div_(sums).scatter_add_(1, target, -torch.ones_like(sums))
            of_hidden[part] = logits @ weight
        ctx.save_for_backward(of_hidden)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (of_hidden,) = ctx.saved_tensors
        return None, None, None, of_hidden * grad.to(of_hidden.device)


def _same(tensor: Tensor) -> Tensor:
    return tensor
