"""The cache of a transformers model: the name of its argument, and the number of its tokens.

A cache among the arguments of a call is found by its type, whatever its name. The name is needed
only to pass one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin

from pyreft.annotations import Arguments
from pyreft.installed.fact import fact, require_found

if TYPE_CHECKING:
    from transformers.cache_utils import CacheLayerMixin

# The argument of `forward` and `generate` for a cache of keys and values, the newest name first.
CACHE_NAMES = ("cache", "past_key_values")
# Arguments for a state other than keys and values: one that has read each token once, so that steps
# can be counted; and those of models that are given some tokens again.
_RECURRENT = ("cache_params", "state")
_STATES = (*_RECURRENT, "mems", "past_buckets_states")
# The hidden states (tokens, rows, width) of each layer: a tuple of them counts its tokens.
_HIDDEN = "mems"


@fact("transformers")
def cache_counts_tokens() -> None:
    """A cache counts the tokens that it holds."""
    cache = DynamicCache()
    require_found(int(cache.get_seq_length()), 0, "get_seq_length() of an empty cache")
    keys = torch.zeros(1, 1, 3, 2, device="cpu")
    cache.update(keys, keys, 0)
    require_found(int(cache.get_seq_length()), 3, "get_seq_length() of a cache of 3 tokens")


@fact("transformers")
def cache_has_layers() -> None:
    """A cache consists of layers, whose update, get_seq_length and get_mask_sizes return what
    attention reads of earlier tokens.
    """
    from transformers.cache_utils import DynamicLayer

    make: Callable[[], CacheLayerMixin] = DynamicLayer
    layer = make()
    require_found(len(Cache(layers=[layer]).layers), 1, "the number of layers of a cache of one")
    keys = torch.zeros(1, 1, 3, 2, device="cpu")
    require_found(layer.update(keys, keys)[0].shape, keys.shape, "the shape of updated keys")
    require_found(int(layer.get_seq_length()), 3, "get_seq_length() of a layer of 3 tokens")
    if not callable(layer.get_mask_sizes):
        raise TypeError("get_mask_sizes of a layer is not a method")


def cache_argument(model: nn.Module) -> str | None:
    """The name under which `forward` of a model takes a cache of keys and values.

    None if it takes none, or two.
    """
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in CACHE_NAMES if name in parameters]
    return names[0] if len(names) == 1 else None


@fact("transformers")
def generate_takes_cache() -> None:
    """Generate takes a cache under the same name under which it passes one to a model."""
    require_found(
        len(_of_generate()), 1, f"the number of these names, {CACHE_NAMES}, that it takes"
    )


def generate_cache_argument() -> str:
    """The name under which `generate` takes a cache, for every model."""
    generate_takes_cache.require("generating from a cache of a shared beginning")
    return _of_generate()[0]


def _of_generate() -> list[str]:
    parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return [name for name in CACHE_NAMES if name in parameters]


def is_plain_cache(cache: Cache) -> bool:
    """Whether all layers of a cache keep the keys and values of every token, in their order."""
    from transformers.cache_utils import DynamicLayer

    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


class UncountedStateError(ValueError):
    """A call has a state of earlier tokens that does not count them."""


class RecurrentStateError(UncountedStateError):
    """The state has read each token of the steps before once, so that those can be counted."""


def cached_tokens(arguments: Arguments) -> int:
    """The number of tokens that a cache among the arguments of a call holds, 0 without one.

    Raises:
        UncountedStateError: If an argument keeps earlier tokens and does not count them.
        ValueError: If there are two caches.
    """
    found = {id(v): (name, v) for name, v in arguments.items() if isinstance(v, Cache)}
    if len(found) > 1:
        names = " and ".join(name for name, _ in found.values())
        raise ValueError(f"this call has two caches, {names}: pass one.")
    for name in (*CACHE_NAMES, *_STATES):
        value = arguments.get(name)
        if name == _HIDDEN and isinstance(value, (list, tuple)) and value:
            return 0 if value[0] is None else int(value[0].shape[0])
        if value is not None and not isinstance(value, Cache):
            # A user's own cache may count tokens by the same method.
            if name in _STATES or not hasattr(value, "get_seq_length"):
                error = RecurrentStateError if name in _RECURRENT else UncountedStateError
                raise error(_uncounted(name, value))
            found[id(value)] = name, value
    if not found:
        return 0
    ((name, cache),) = found.values()
    linear = getattr(cache, "is_linear", None)
    if linear and all(linear):
        raise RecurrentStateError(_uncounted(name, cache))
    position = arguments.get("cache_position")
    if position is not None and getattr(cache, "is_compileable", False):
        # Some static caches leave padding out, and count the first row alone.
        return int(position[0])
    return int(cache.get_seq_length())


def _uncounted(name: str, value: object) -> str:
    return (
        f"this model keeps what it has read in {name!r} ({type(value).__name__}), which does not "
        "count its tokens: generate with use_cache=False. In a call of the model, "
        'positions "all" and intervention_locations do not need the number.'
    )
