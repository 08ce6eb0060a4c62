"""Tiny inputs for a model that reads pictures or sound, to see once what its modules return.

Their sizes come from the config, under the names that configs use; the first inputs that a model
runs with are those that fit it.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

# The number of rows: no hidden state is so narrow, and few have so many tokens.
ROWS = 3
_PICTURES = ("pixel_values", "inputs")
_SIZES = ("image_size", "input_size")
_MELS = ("num_mel_bins", "feature_size", "feature_projection_input_dim", "input_feat_per_channel")
_FRAMES = ("max_source_positions", "max_length")


def tiny_inputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Sets of arguments that a model may take, the likeliest first."""
    takes, config = inspect.signature(model.forward).parameters, model.config
    for name in takes:
        if name in _PICTURES:
            yield from ({name: one} for one in _pictures(config))
        elif name == "input_features":
            yield from ({name: one} for one in _spectrograms(config))
        elif name == "input_values":
            yield from ({name: one} for one in _spectrograms(config) if _numbers(config, _MELS))
            yield {name: _noise(4000)}


def _pictures(config: PreTrainedConfig) -> Iterator[Tensor]:
    """Squares, so that both axes of a grid of patches have one size."""
    channels = [*_numbers(config, ("num_channels", "in_channels")), 3, 1]
    for size in dict.fromkeys([*_numbers(config, _SIZES), 64, 224]):
        for count in dict.fromkeys(channels):
            yield _noise(count, size, size)


def _spectrograms(config: PreTrainedConfig) -> Iterator[Tensor]:
    """(B, frames, mels) and (B, mels, frames)."""
    mels = dict.fromkeys([*_numbers(config, _MELS), 80, 128])
    frames = [count for n in _numbers(config, _FRAMES) for count in (2 * n, n)]
    for bins, count in itertools.product(mels, dict.fromkeys([40, *frames])):
        yield _noise(count, bins)
        yield _noise(bins, count)


def _numbers(config: PreTrainedConfig, names: tuple[str, ...]) -> list[int]:
    """The sizes that a config has under some of these names."""
    found = (getattr(config, name, None) for name in names)
    sizes = (one[0] if isinstance(one, (list, tuple)) and one else one for one in found)
    return [size for size in sizes if isinstance(size, int) and size > 0]


def _noise(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0))
