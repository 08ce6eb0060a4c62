"""How transformers models are given a function to attend by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyreft.installed.fact import fact, require_found


@fact("transformers")
def attention_can_be_registered() -> None:
    """A model that supports it attends by the function that is registered under its config's
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
    # Read, so that a class that no longer has it is an error.
    require_found(
        isinstance(PreTrainedModel._supports_attention_backend, bool), True, "the class's say"
    )


def sdpa() -> Callable[..., Any]:
    """What transformers attends by under the name "sdpa"."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Register a function to attend by, with the masks of "sdpa"."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def attention_of(config: Any) -> str:
    """The name of what a model of this config attends by."""
    return str(config._attn_implementation)


def takes_registered(model: Any) -> bool:
    """Whether a model attends by a registered function: others ask for its name only."""
    return bool(model._supports_attention_backend)


@contextmanager
def attending_by(config: Any, name: str) -> Iterator[None]:
    """Let a model of this config attend by a registered function inside the block."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def keeps_state(model: nn.Module) -> bool:
    """Whether a model says that it keeps a state that is no keys and values of tokens."""
    return bool(getattr(model, "_is_stateful", False))


def captures_outputs(hook: Any) -> bool:
    """Whether a hook is one of transformers' own, that collects outputs when it is asked to.

    It stays on a module once it was used.
    """
    return str(hook.__module__).startswith("transformers.utils.output_capturing")
