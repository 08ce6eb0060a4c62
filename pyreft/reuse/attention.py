"""Attention of the few tokens of a window to many earlier ones.

    softmax(Q K^T s + mask) V      Q (B, H, W, width), K and V (B, G, P + W, width)

H / G heads share keys and values. Fused kernels on a CPU want these once for each head, and write
gradients of all of them; where W is small, the scores themselves take less memory and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "pyreft_window"


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' "sdpa" computes, in its terms.

    Args:
        module: The attention module.
        query: (B, H, W, width).
        key, value: (B, G, P + W, width).
        attention_mask: (B or 1, H or 1, W, P + W); false, or added to the scores.
        dropout, scaling, **kwargs: As of "sdpa".

    Returns:
        (B, W, H, width), and no weights.
    """
    batch, heads, window, width = query.shape
    groups, length = key.shape[1:3]
    # Scores no larger than keys and values of each head would be, and not rounded before the sum.
    small = (
        window <= 2 * width and window < length and query.dtype in (torch.float32, torch.float64)
    )
    plain = not dropout and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if attention_mask is None or attention_mask.shape[1] != 1 or not (small and plain):
        arguments = (module, query, key, value, attention_mask, dropout, scaling)
        return sdpa_attention_forward(*arguments, **kwargs)
    scale = width**-0.5 if scaling is None else scaling
    shared = (batch, groups, heads // groups * window, width)
    scores = (query.reshape(shared) * scale) @ key.mT
    scores = scores.view(batch, groups, heads // groups, window, length)
    mask = attention_mask[:, :, None]
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1).view(*shared[:3], length)
    attended = (weights @ value).view(batch, heads, window, value.shape[-1])
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, window_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def attending(base: Any) -> Iterator[None]:
    """Attend so inside the block, if the model attends by "sdpa", where it would on a CPU."""
    config, told = base.config, base.config._attn_implementation
    # Other models ask for the name, and compute something else.
    if told != "sdpa" or not base._supports_attention_backend or base.device.type != "cpu":
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = told
