"""Register an attention function in transformers, and select it for a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn

from pyreft.installed.fact import fact, require_found

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# (module, query, key, value, attention_mask, ...) -> attended values, no attention weights.
AttentionFunction: TypeAlias = "Callable[..., tuple[Tensor, None]]"


@fact("transformers")
def attention_can_be_registered() -> None:
    """A model that supports it calls the attention function that is registered under its config's
    _attn_implementation, with the masks of the same name.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    found = list(inspect.signature(sdpa()).parameters)
    expected = ["module", "query", "key", "value", "attention_mask", "dropout", "scaling"]
    require_found(found[:7], expected, "the parameters of sdpa_attention_forward")
    for registry in (AttentionInterface, AttentionMaskInterface):
        require_found(callable(registry.register), True, f"whether {registry.__name__} registers")
    require_found(callable(sdpa_mask), True, "whether sdpa_mask can be called")
    # Read the attribute, so that a class without it is an error.
    require_found(
        isinstance(PreTrainedModel._supports_attention_backend, bool),
        True,
        "whether _supports_attention_backend is a bool",
    )


def sdpa() -> AttentionFunction:
    """The attention function of transformers under the name "sdpa"."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def register_attention(name: str, function: AttentionFunction) -> None:
    """Register an attention function, with the masks of "sdpa"."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def attention_of(config: PreTrainedConfig) -> str:
    """The name of the attention function of a model with this config."""
    return str(config._attn_implementation)


def takes_registered(model: PreTrainedModel) -> bool:
    """Whether a model calls a registered attention function; others only compare its name."""
    return bool(model._supports_attention_backend)


@contextmanager
def attending_by(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Select a registered attention function for models with this config inside the block."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def keeps_state(model: nn.Module) -> bool:
    """Whether a model declares a state other than keys and values of tokens."""
    return bool(getattr(model, "_is_stateful", False))


def captures_outputs(hook: Callable[..., object]) -> bool:
    """Whether a hook is transformers' own, which collects outputs on request.

    It stays on a module after its first use.
    """
    return str(hook.__module__).startswith("transformers.utils.output_capturing")
