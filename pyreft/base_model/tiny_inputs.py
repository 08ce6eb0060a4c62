"""Tiny inputs for a model, to see once what its modules return.

The sizes of pictures and sounds come from the config, under the names that configs use; the first
inputs that a model runs with are those that fit it.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

# The numbers of rows, of tokens, and of a decoder's tokens: no two are equal, nor a usual width.
ROWS, TOKENS, OF_DECODER = 3, 11, 5
# The tokens in which the second and the third row differ from the first.
CHANGED, CHANGED_IN_DECODER = (0, TOKENS - 2), (0, OF_DECODER - 2)
_PICTURES = ("pixel_values", "inputs")
_SIZES = ("image_size", "input_size")
_MELS = ("num_mel_bins", "feature_size", "feature_projection_input_dim", "input_feat_per_channel")
_FRAMES = ("max_source_positions", "max_length")


def tiny_inputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Sets of arguments that a model may take, the likeliest first."""
    takes, config = inspect.signature(model.forward).parameters, model.config
    if "input_ids" in takes:
        yield from _texts("decoder_input_ids" in takes, config)
    spoken = {"decoder_input_ids": _ids(OF_DECODER)} if "decoder_input_ids" in takes else {}
    for name in takes:
        if name in _PICTURES:
            yield from ({name: one} for one in _pictures(config))
        elif name == "input_features":
            yield from ({name: one} | spoken for one in _spectrograms(config))
        elif name == "input_values":
            mels = _spectrograms(config) if _numbers(config, _MELS) else ()
            yield from ({name: one} | spoken for one in (*mels, _noise(4000)))


def _texts(two: bool, config: PreTrainedConfig) -> Iterator[dict[str, Tensor]]:
    """Texts, without and with an end token, which some classifiers look for."""
    written = {"decoder_input_ids": _ids(OF_DECODER)} if two else {}
    ids, part = _ids(TOKENS), getattr(config, "decoder_config", None)
    yield {"input_ids": ids} | written
    if two and (channels := getattr(part, "num_channels", None)):
        # Dia's decoder reads a token for each channel of a sound.
        yield {
            "input_ids": ids,
            "decoder_input_ids": _ids(OF_DECODER)[..., None].repeat(1, 1, channels),
        }
    yield {"input_ids": ids}
    if isinstance(codebooks := getattr(config, "num_codebooks", None), int):
        # A row of ids for each codebook of a sound; or ids of the text and of all codebooks.
        yield {"input_ids": ids.repeat_interleave(codebooks, 0)}
        yield {"input_ids": ids[..., None].repeat(1, 1, codebooks + 1)}
    ends = getattr(config, "eos_token_id", None)
    if isinstance(ends, int):
        ids = ids.clone()
        ids[:, -1] = ends
        yield {"input_ids": ids}


def _ids(count: int) -> Tensor:
    """(B, count), after the ids that special tokens often have; rows differ in one token each."""
    ids = torch.arange(4, 4 + count).repeat(ROWS, 1)
    for row, column in enumerate(CHANGED if count == TOKENS else CHANGED_IN_DECODER, 1):
        ids[row, column] += TOKENS
    return ids


def _pictures(config: PreTrainedConfig) -> Iterator[Tensor]:
    """Squares, so that both axes of a grid of patches have one size."""
    channels = [*_numbers(config, ("num_channels", "in_channels")), 3, 1]
    for size in dict.fromkeys([*_numbers(config, _SIZES), 64, 224]):
        for count in dict.fromkeys(channels):
            yield _noise(count, size, size)


def _spectrograms(config: PreTrainedConfig) -> Iterator[Tensor]:
    """(B, frames, mels) and (B, mels, frames); four frames may be stacked in one."""
    parts = (config, getattr(config, "encoder_config", config))
    known = [size for one in parts for size in _numbers(one, _MELS)]
    mels = dict.fromkeys([*known, 80, 128, *(4 * size for size in known)])
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
