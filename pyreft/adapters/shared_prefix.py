"""Run the common beginning of all prompts of a batch, such as a system prompt, only once.

    . . s s s a a      . . s s|s a a      in the cache: the columns before the first one that
    . . . s s s b  ->  . . . s|s s b      differs between rows or is edited, of each row what it
    s s s c c c c      s s s c|c c c      has there of the shared tokens

No column moves. No token of the cache is edited, so its keys and values are those of the bare
model, for every row and adapter. Positions are computed from the mask. For models where they are
not, and for sliding windows, prompts run unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from pyreft.annotations import Arguments, Inputs
from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import positions_depend_on_length
from pyreft.editing.pass_plan import Placed
from pyreft.installed.caches import (
    cache_argument,
    cache_has_layers,
    generate_takes_cache,
    is_plain_cache,
)
from pyreft.placement.batch import Batch

logger = logging.get_logger(__name__)

# With fewer shared tokens there is nothing to gain.
_SHORTEST = 32
# Settings of generation that create their own caches, return per-token results of the prompt's
# forward pass, or are too rare to support.
_RUN_WHOLE = (
    *("no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "prompt_lookup_num_tokens"),
    *("cache_implementation", "output_hidden_states", "output_attentions", "prefill_chunk_size"),
    *("encoder_no_repeat_ngram_size", "guidance_scale", "penalty_alpha", "dola_layers"),
    *("token_healing", "assistant_early_exit"),
)


def share_beginning(
    base: PreTrainedModel, arguments: Arguments, prompt: Batch, placed: Sequence[Placed]
) -> Cache | None:
    """Run the common beginning of all prompts of a batch once; edits must be off.

    Args:
        base: The base model.
        arguments: Of `generate`.
        prompt: The prompts.
        placed: The edits.

    Returns:
        The cache of the first columns, which `generate` continues; None if nothing is shared.
    """
    tokens = prompt.tokens.get(None)
    if tokens is None or tokens.input_ids is None or len(tokens.prompt) == 1:
        return None
    if tokens.prompt.shape[1] <= _SHORTEST:
        return None
    if not _can_share(base, arguments, bool(tokens.prompt.all())):
        return None
    ids, text = tokens.input_ids, tokens.prompt
    pads = text.int().argmax(1)  # (B,)
    longest = int(pads.argmin())
    first, least = ids[longest], int(pads[longest])
    columns = torch.arange(ids.shape[1], device=ids.device)
    source = (columns - pads[:, None] + least).clamp(min=0)  # (B, T), the same token in `first`
    shared = torch.where(columns < pads[:, None], ~text, text & (ids == first[source]))
    for mask in (mask for one in placed for mask in one.placement.masks.values()):
        shared = shared & ~mask.to(shared.device)
    # Each prompt keeps at least one token to run.
    count = int(shared.all(0).int().cumprod(0)[:-1].sum())
    if count - least < _SHORTEST:
        return None
    return _spread(_run(base, first[least:count]), base, source[:, :count] - least, arguments)


def _can_share(base: PreTrainedModel, arguments: Arguments, without_padding: bool) -> bool:
    """Whether a call of `generate` may be given the cache of a shared beginning."""
    known = {"input_ids", "attention_mask", "generation_config", *vars(GenerationConfig())}
    given = {name for name, value in arguments.items() if value is not None}
    if base.training or given - known or base.config.is_encoder_decoder:
        return False
    if positions_depend_on_length(base.config.get_text_config(decoder=True)):
        return False
    settings = _settings(base, arguments)
    if settings.get("use_cache") is False or any(settings.get(name) for name in _RUN_WHOLE):
        return False
    # A returned cache would have zeros in the columns of padding, unlike other caches.
    if settings.get("return_dict_in_generate") and not without_padding:
        return False
    for needed in (cache_has_layers, generate_takes_cache):
        if not needed.holds:
            logger.warning_once(
                "The common beginning of the prompts of a batch runs for each of them. Running it "
                f"once relies on this: {needed.explain()}"
            )
            return False
    model = running_model(base)
    if cache_argument(model) is None:
        return False
    takes = inspect.signature(model.forward).parameters
    return "position_ids" in takes and is_plain_cache(_empty_cache(base))


def _settings(base: PreTrainedModel, arguments: Arguments) -> Inputs:
    """The settings of a generation: arguments override a config that is passed, which overrides the
    model's own.
    """
    passed = arguments.get("generation_config")
    sources = [vars(base.generation_config), {} if passed is None else vars(passed), arguments]
    return {name: value for one in sources for name, value in one.items() if value is not None}


@torch.no_grad()
def _run(base: PreTrainedModel, ids: Tensor) -> DynamicCache:
    """The cache of tokens (N,)."""
    model = running_model(base)
    takes = inspect.signature(model.forward).parameters
    without_head = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    cache = _empty_cache(base)
    base(input_ids=ids[None], use_cache=True, **{str(cache_argument(model)): cache}, **without_head)
    return cache


def _spread(
    one: DynamicCache, base: PreTrainedModel, tokens: Tensor, arguments: Arguments
) -> Cache:
    """The cache of every row and beam.

    Args:
        one: The cache of the shared tokens.
        base: The base model.
        tokens: (B, C), the index of the shared token in each column; negative on padding.
        arguments: Of `generate`.
    """
    settings = _settings(base, arguments)
    copies = max(settings.get(name) or 1 for name in ("num_beams", "num_return_sequences"))
    tokens = tokens.repeat_interleave(copies, dim=0)
    cache = _empty_cache(base)
    for index, layer in enumerate(one.layers):
        known: Any = layer
        cache.update(_columns(known.keys, tokens), _columns(known.values, tokens), index)
    return cache


def _columns(known: Tensor, tokens: Tensor) -> Tensor:
    """(1, heads, N, width) of tokens -> (B, heads, C, width) of columns, zero on padding."""
    tokens = tokens.to(known.device)
    rows = known[0][:, tokens.clamp(min=0)].transpose(0, 1)
    return rows.masked_fill((tokens < 0)[:, None, :, None], 0).contiguous()


def _empty_cache(base: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=base.config.get_text_config(decoder=True))
