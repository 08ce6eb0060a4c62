"""The linear maps of a model, without the layers that PEFT puts around them.

nn.Linear, GPT-2's Conv1D      a linear map
PEFT's LoRA layer on one       that linear map; A, B and dropout inside it do not count
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pyreft.installed.tuners import layer_below


def linears(module: nn.Module) -> list[nn.Module]:
    """The linear maps in a module; the module itself may be one."""
    return [m for _, m in walk(module) if is_linear(m)]


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and its submodules, with their paths, without the parts of a linear map."""
    yield path, module
    if not is_linear(module):
        for name, child in layer_below(module).named_children():
            yield from walk(child, f"{path}.{name}")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, or PEFT's layer around one."""
    return isinstance(layer_below(module), nn.Linear) or _is_conv1d(layer_below(module))


def features(linear: Any) -> tuple[int, int]:
    """(in, out) features of a linear map."""
    linear = layer_below(linear)
    if _is_conv1d(linear):
        return linear.weight.shape[0], linear.weight.shape[1]
    return linear.in_features, linear.out_features


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear map, whose weight is transposed."""
    return type(module).__name__ == "Conv1D"
