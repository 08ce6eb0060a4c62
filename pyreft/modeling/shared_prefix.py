"""What all prompts of a batch begin with, a system prompt, runs through the model once.

    . . s s s a a      s s s . . a a    the shared part first, then padding, then the rest
    . . . s s s b  ->  s s s . . . b
    s s s c c c c      s s s c c c c

No token of it is edited, so that its keys and values are those of the bare model, whichever row and
adapter they are for. Attention and positions go by the mask, not by columns; where that is not so,
for sliding windows, say, prompts run as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from pyreft.modeling.calls import Batch
from pyreft.modeling.components import running_model
from pyreft.modeling.plan import Placed
from pyreft.positions import Tokens

# Below so many tokens there is nothing to gain.
_SHORTEST = 32
# Settings of generation that read columns, or the outputs of the prompt's own forward pass.
_BY_COLUMN = (
    *("no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "prompt_lookup_num_tokens"),
    *("cache_implementation", "output_hidden_states", "output_attentions", "prefill_chunk_size"),
    *("encoder_no_repeat_ngram_size", "guidance_scale"),
)


class Shared(NamedTuple):
    """A call of `generate` whose prompts begin in a cache.

    Args:
        arguments: What `generate` is called with.
        prompt: The prompts in it.
    """

    arguments: dict[str, Any]
    prompt: Batch


def share_beginning(
    base: Any, arguments: Mapping[str, Any], prompt: Batch, placed: Sequence[Placed]
) -> Shared | None:
    """Run once what all prompts of a batch begin with; edits must be off.

    Args:
        base: The base model.
        arguments: Of `generate`.
        prompt: The prompts.
        placed: What is edited.

    Returns:
        What to do in place of the call, or None if nothing is shared. `with_prompts` is for what it
        returns.
    """
    tokens = prompt.tokens.get(None)
    length = _shared_length(base, arguments, tokens, placed)
    if tokens is None or not length:
        return None
    moved = _shared_first(tokens, length)
    changed = {
        "input_ids": moved.input_ids,
        "attention_mask": moved.prompt.long(),
        "past_key_values": _run(base, tokens, length, arguments),
    }
    return Shared({**arguments, **changed}, replace(prompt, tokens={None: moved}))


def _shared_length(
    base: Any, arguments: Mapping[str, Any], tokens: Tokens | None, placed: Sequence[Placed]
) -> int:
    """How many tokens all prompts of a batch begin with that no adapter edits.

    0 if to run them once would gain nothing or change anything.
    """
    if tokens is None or tokens.input_ids is None or len(tokens.prompt) == 1:
        return 0
    if not _can_share(base, arguments):
        return 0
    first_row = tokens.input_ids[0][tokens.prompt[0]]
    # Each prompt keeps a token to go on from.
    length = min(int(tokens.prompt_length.min()) - 1, len(first_row))
    masks = [mask for one in placed for mask in one.placement.masks.values()]
    for mask in {id(mask): mask for mask in masks}.values():
        length = min([length, *tokens.index[mask].tolist()])
    if length < _SHORTEST:
        return 0
    expected = first_row[tokens.index.clamp(min=0, max=len(first_row) - 1)]
    differs = tokens.prompt & (tokens.input_ids != expected)
    length = min([length, *tokens.index[differs].tolist()])
    # Columns that pad all rows would be gone, and count in `max_length`.
    as_wide = int(tokens.prompt_length.max()) == tokens.prompt.shape[1]
    return length if length >= _SHORTEST and as_wide else 0


def _can_share(base: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of `generate` may be given the cache of a shared beginning."""
    known = {"input_ids", "attention_mask", "generation_config", *vars(GenerationConfig())}
    given = {name for name, value in arguments.items() if value is not None}
    if base.training or given - known or base.config.is_encoder_decoder:
        return False
    settings = arguments.get("generation_config") or base.generation_config
    said = {**vars(settings), **{n: v for n, v in arguments.items() if v is not None}}
    if said.get("use_cache") is False or any(said.get(name) for name in _BY_COLUMN):
        return False
    takes = inspect.signature(running_model(base).forward).parameters
    if not {"past_key_values", "position_ids"} <= set(takes):
        return False
    layers = _empty_cache(base).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def _run(base: Any, tokens: Tokens, length: int, arguments: Mapping[str, Any]) -> DynamicCache:
    """The cache of the first `length` tokens, for every row and beam."""
    assert tokens.input_ids is not None
    ids = tokens.input_ids[0][tokens.prompt[0]][None, :length]
    takes = inspect.signature(running_model(base).forward).parameters
    without_head = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    cache = _empty_cache(base)
    base(input_ids=ids, past_key_values=cache, use_cache=True, **without_head)
    settings = arguments.get("generation_config") or base.generation_config
    beams, several = (
        arguments.get(name) or getattr(settings, name) or 1
        for name in ("num_beams", "num_return_sequences")
    )
    cache.batch_repeat_interleave(len(tokens.prompt) * max(beams, several))
    return cache


def _shared_first(tokens: Tokens, length: int) -> Tokens:
    """The prompts with their shared part in the first columns, (B, T) of no more columns."""
    assert tokens.input_ids is not None
    rest = (tokens.prompt & (tokens.index >= length)).sum(1, keepdim=True)
    width = length + int(rest.max())
    columns = torch.arange(width, device=rest.device)[None]
    mask = (columns < length) | (columns >= width - rest)
    ids = tokens.input_ids.new_zeros(mask.shape)
    ids[mask] = tokens.input_ids[tokens.prompt]
    return Tokens(mask, torch.zeros_like(mask), ids)


def with_prompts(outputs: Any, prompts: Tensor) -> Any:
    """What `generate` returned, with the prompts (B, T) as they were given."""
    sequences = outputs if isinstance(outputs, Tensor) else outputs.sequences
    rows = prompts.repeat_interleave(len(sequences) // len(prompts), dim=0)
    whole = torch.cat([rows, sequences[:, prompts.shape[1] :]], dim=1)
    if isinstance(outputs, Tensor):
        return whole
    outputs.sequences = whole
    return outputs


def _empty_cache(base: Any) -> DynamicCache:
    return DynamicCache(config=base.config.get_text_config(decoder=True))
