"""The arguments of `generate` -> its prompt, as each stack of the model sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from pyreft.annotations import Arguments, Inputs
from pyreft.installed.caches import cached_tokens
from pyreft.placement.batch import Batch, read_given
from pyreft.placement.boundary import find_tokens, require_mask
from pyreft.positions import Tokens

logger = logging.get_logger(__name__)


def read_prompt(
    arguments: Inputs, generation_config: GenerationConfig, two_stacks: bool
) -> tuple[Batch, Batch]:
    """Read the prompt that is passed to `generate`, as each stack of the model sees it.

    Args:
        arguments: Of `generate`. Missing arguments that positions depend on are added, as
            `generate` would: an attention mask, and the start of a decoder's prompt.
        generation_config: The base model's.
        two_stacks: Whether the model has an encoder and a decoder.

    Returns:
        The prompt that an encoder reads before the first step, and the one that steps continue.
    """
    cached = cached_tokens(arguments)
    if cached:
        logger.warning_once(
            f"generate continues from a cache of {cached} tokens: they are kept as they are, and "
            "only positions in the rest of the prompt are edited."
        )
    if not two_stacks:
        arguments["attention_mask"] = mask = _prompt_mask(arguments, generation_config, cached)
        if cached and mask.shape[1] <= cached:
            raise ValueError(
                f"the prompt has {mask.shape[1]} tokens, and the cache holds {cached} before it: "
                "give the ids of all of them, or an attention_mask of all."
            )
        tokens = _tokens(arguments.get("input_ids"), mask)
        return Batch(len(mask), {}), Batch(len(mask), {None: tokens})
    encoder: dict[str | None, Tokens] = {}
    outputs, sound = arguments.get("encoder_outputs"), _without_text(arguments)
    if outputs is not None:
        read = outputs[0]
    elif sound is not None:
        read = sound
    else:
        read = _prompt_mask(arguments, generation_config)
        encoder["encoder"] = _tokens(arguments.get("input_ids"), read)
    decoder = _decoder_prompt(arguments, generation_config, read, cached)
    return Batch(len(read), encoder), Batch(len(read), {"decoder": decoder})


def _without_text(arguments: Arguments) -> Tensor | None:
    """What an encoder of sound or pictures reads, (B, ...); None if it reads text, or nothing."""
    if read_given(arguments) is not None:
        return None
    tensors = (value for value in arguments.values() if isinstance(value, Tensor))
    return next((value for value in tensors if value.is_floating_point()), None)


def _tokens(ids: Tensor | None, mask: Tensor) -> Tokens:
    """The tokens in a mask, with their ids if the shapes agree (ids may continue a cache)."""
    same = ids is not None and ids.shape == mask.shape
    shape = (mask.shape[0], mask.shape[1])
    return find_tokens(shape, mask.device, ids if same else None, mask)


def _prompt_mask(
    arguments: Arguments, generation_config: GenerationConfig, cached: int = 0
) -> Tensor:
    """The attention mask of a prompt, (B, T): the one given, else what `generate` would infer.

    `generate` treats a pad token as padding only if it is not also an end token: with
    pad == eos, real tokens would be masked.
    """
    given = read_given(arguments)
    if given is None:
        raise ValueError("generate needs a prompt: give input_ids or inputs_embeds.")
    if given.mask is not None:
        return require_mask("attention_mask", given.mask, given.shape, cached)
    if arguments.get("inputs_embeds") is not None:
        return torch.ones(given.shape, dtype=torch.long, device=given.device)
    ids: Tensor = arguments["input_ids"]
    settings = arguments.get("generation_config") or generation_config
    pad = arguments.get("pad_token_id", settings.pad_token_id)
    ends = arguments.get("eos_token_id", settings.eos_token_id)
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    mask: Tensor = ids != pad
    return mask.long()


def _decoder_prompt(
    arguments: Inputs, generation_config: GenerationConfig, beside: Tensor, cached: int
) -> Tokens:
    """What a decoder starts from: the start token, and the tokens that the caller gives.

    `generate` puts the start token before the caller's tokens unless they begin with it. This
    function does it first, so that `generate` changes nothing.
    """
    given = read_given(arguments, "decoder_")
    start, rows = _start_token(arguments, generation_config), beside.shape[0]
    first = None
    if start is not None:
        first = torch.as_tensor(start, device=beside.device).reshape(-1, 1).expand(rows, 1)
    if given is None or given.ids is None:
        # Without a start token, generate itself raises the error.
        return _tokens(first, torch.ones(rows, 1, dtype=torch.long, device=beside.device))
    ids, mask = given.ids, given.mask
    if mask is not None:
        mask = require_mask("decoder_attention_mask", mask, given.shape, cached)
    if first is not None and bool((ids[:, :1] != first).all()):
        arguments["decoder_input_ids"] = ids = torch.cat([first, ids], dim=1)
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
            arguments["decoder_attention_mask"] = mask
    return _tokens(ids, torch.ones_like(ids) if mask is None else mask)


def _start_token(
    arguments: Arguments, generation_config: GenerationConfig
) -> int | list[int] | None:
    settings = [s for s in (arguments.get("generation_config"), generation_config) if s is not None]
    found = [arguments.get("decoder_start_token_id"), *(s.decoder_start_token_id for s in settings)]
    found += [arguments.get("bos_token_id"), *(s.bos_token_id for s in settings)]
    return next((token for token in found if token is not None), None)
