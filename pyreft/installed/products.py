"""oneDNN's matrix product in torch, which only compiled code has a public way to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyreft.installed.fact import fact, require_found


@fact("torch")
def onednn_multiplies() -> None:
    """Torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '') multiplies by oneDNN on
    a CPU with AVX2 or AVX-512.
    """
    if not torch.backends.mkldnn.is_available():
        raise ValueError("torch was built without oneDNN")
    capability = torch.backends.cpu.get_cpu_capability()
    require_found(capability in ("AVX2", "AVX512"), True, f"the processor's {capability}")
    x, weight = torch.ones(2, 3, device="cpu"), torch.ones(4, 3, device="cpu")
    require_found(onednn_linear(x, weight, None).tolist(), [[3.0] * 4] * 2, "a product of ones")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X (..., K), W (M, K), b (M,) -> X W^T + b (..., M); without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
