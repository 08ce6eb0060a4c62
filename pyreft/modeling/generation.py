"""The arguments of `generate` -> its prompt, and what each step sees of it.

generate      prompt, placed once         an encoder runs once, before the first step
each step     its window of the prompt    prefill, a chunk, one token, or all again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from pyreft.installed.caches import cached_tokens
from pyreft.installed.steps import generate_calls_model
from pyreft.modeling.boundary import find_tokens, require_mask
from pyreft.modeling.calls import Batch, read_given
from pyreft.modeling.placement import Placement
from pyreft.positions import Tokens

logger = logging.get_logger(__name__)


# ---- the prompt ----------------------------------------------------------------------------------


def read_prompt(
    arguments: dict[str, Any], generation_config: Any, two_stacks: bool
) -> tuple[Batch, Batch]:
    """The prompt as each stack of the model sees it: all that `generate` is given.

    Args:
        arguments: Of `generate`. What it would make by itself where it is not given, and
            positions depend on, is put in: an attention mask, and the start of a decoder's prompt.
        generation_config: The base model's.
        two_stacks: Whether the model has an encoder and a decoder.

    Returns:
        What an encoder reads before the first step, and what the steps go on from.
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
    outputs = arguments.get("encoder_outputs")
    if outputs is not None:
        read = outputs[0]
    else:
        read = _prompt_mask(arguments, generation_config)
        encoder["encoder"] = _tokens(arguments.get("input_ids"), read)
    decoder = _decoder_prompt(arguments, generation_config, read, cached)
    return Batch(len(read), encoder), Batch(len(read), {"decoder": decoder})


def _tokens(ids: Tensor | None, mask: Tensor) -> Tokens:
    """All that a mask admits, the ids if they are of its length (they may go on from a cache)."""
    same = ids is not None and ids.shape == mask.shape
    shape = (mask.shape[0], mask.shape[1])
    return find_tokens(shape, mask.device, ids if same else None, mask)


def _prompt_mask(arguments: Mapping[str, Any], generation_config: Any, cached: int = 0) -> Tensor:
    """The attention mask of a prompt, (B, T): the one given, else what `generate` would infer.

    `generate` takes a pad token for padding only if it is not an end token as well: with
    pad == eos, real tokens would be hidden.
    """
    given = read_given(arguments)
    if given is None:
        raise ValueError("generate needs a prompt: give input_ids or inputs_embeds.")
    if given.mask is not None:
        return require_mask("attention_mask", given.mask, given.shape, cached)
    if arguments.get("inputs_embeds") is not None:
        return torch.ones(given.shape, dtype=torch.long, device=given.device)
    ids = arguments["input_ids"]
    settings = arguments.get("generation_config") or generation_config
    pad = arguments.get("pad_token_id", settings.pad_token_id)
    ends = arguments.get("eos_token_id", settings.eos_token_id)
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).long()


def _decoder_prompt(
    arguments: dict[str, Any], generation_config: Any, beside: Tensor, cached: int
) -> Tokens:
    """What a decoder starts from: the start token, and the tokens that the caller gives.

    `generate` puts the start token before the caller's unless they begin with it. So does this,
    for it then has nothing left to change.
    """
    given = read_given(arguments, "decoder_")
    start, rows = _start_token(arguments, generation_config), beside.shape[0]
    first = None
    if start is not None:
        first = torch.as_tensor(start, device=beside.device).reshape(-1, 1).expand(rows, 1)
    if given is None or given.ids is None:
        # Without a start token generate itself says what is wrong.
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


def _start_token(arguments: Mapping[str, Any], generation_config: Any) -> Any:
    settings = [s for s in (arguments.get("generation_config"), generation_config) if s is not None]
    said = [arguments.get("decoder_start_token_id"), *(s.decoder_start_token_id for s in settings)]
    said += [arguments.get("bos_token_id"), *(s.bos_token_id for s in settings)]
    return next((token for token in said if token is not None), None)


# ---- its steps -----------------------------------------------------------------------------------


class Step(NamedTuple):
    """The tokens that one forward pass of a generation sees.

    Args:
        start: How many tokens come before them.
        length: How many there are in a row.
        rows: How many rows there are: those of the prompt, once for each beam.
    """

    start: int
    length: int
    rows: int


class Steps:
    """Reads the steps of one generation, and makes sure that they follow each other.

    A step goes on from the tokens that were seen, or sees all of them again and more, as without a
    cache. One that does neither means that its cache was not found, and would be edited as if it
    were a prompt.

    Args:
        prompt: T, the number of columns of the prompt.
        cached: How many of them a cache held before the first step.
    """

    def __init__(self, prompt: int, cached: int = 0) -> None:
        self._prompt, self._seen, self._any = prompt, cached, False

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> Step:
        """What a step sees.

        Args:
            args, kwargs: What the step calls the base model with.

        Raises:
            ValueError: If the arguments do not tell which tokens the step sees.
            UnsupportedReleaseError: If they say what does not follow from the steps before.
        """
        names = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
        given = (kwargs.get(name) for name in names)
        tokens = next((value for value in given if value is not None), None)
        if args or tokens is None:
            raise ValueError(
                "this way of generating calls the model on texts of its own, whose prompts are not "
                "known: a ReftModel cannot be used with it."
            )
        step = Step(cached_tokens(kwargs), tokens.shape[1], tokens.shape[0])
        end = step.start + step.length
        # The last token of the prompt may come twice: candidates of early layers begin with it.
        earliest = max(1, min(self._seen, self._prompt) - 1) if self._seen else 0
        goes_on = earliest <= step.start <= self._seen
        again = step.start == 0 and end > self._seen and end >= self._prompt
        if not (goes_on or again):
            generate_calls_model.refuse(
                "generation with an adapter",
                f"a step that sees the tokens {step.start} to {end - 1} after one that ended with "
                f"token {self._seen - 1}, of a prompt of {self._prompt} tokens; it was called with "
                + ", ".join(name for name, value in kwargs.items() if value is not None),
            )
        self._seen, self._any = max(self._seen, end), True
        return step

    def require_all(self) -> None:
        """Make sure that the whole prompt was in the steps of a generation that ended.

        Raises:
            ValueError: If there was no step: another module than the base model ran.
            UnsupportedReleaseError: If some of the prompt was in none of them.
        """
        if not self._any:
            raise ValueError(
                "this model generates without a forward pass of its own, by a module inside it, so "
                "that its prompt was not edited: wrap that module (its language model)."
            )
        if self._seen < self._prompt:
            generate_calls_model.refuse(
                "generation with an adapter",
                f"steps that saw {self._seen} of the {self._prompt} tokens of the prompt",
            )


def step_window(prompt: Placement, step: Step) -> Placement | None:
    """The part of a placed prompt that a step of generation sees.

    Args:
        prompt: The placement on the prompt.
        step: The tokens of the step.

    Returns:
        Masks of the step's shape, or None if the step edits nothing.
    """
    start, length, rows = step
    if start >= prompt.length and not prompt.generated:
        return None
    cut: dict[tuple[int, bool], Tensor] = {}
    masks = {}
    for index, mask in prompt.masks.items():
        generated = index in prompt.generated
        key = (id(mask), generated)
        if key not in cut:
            after = _after(prompt, mask, start, length, generated)
            cut[key] = torch.cat([mask[:, start : start + length], after], dim=1)
            cut[key] = cut[key].repeat_interleave(rows // mask.shape[0], dim=0)
        masks[index] = cut[key]
    subspaces = {index: _repeat(given, rows) for index, given in prompt.subspaces.items()}
    return replace(prompt, masks=masks, subspaces=subspaces)


def _after(prompt: Placement, mask: Tensor, start: int, length: int, generated: bool) -> Tensor:
    """The part of a window after the prompt, (B, n): edited or not, in the rows that are at all."""
    after = min(length, max(0, start + length - mask.shape[1]))
    rest = mask.new_full((mask.shape[0], after), generated)
    return rest if prompt.rows is None else rest & prompt.rows[:, None]


def _repeat(given: Sequence | Mapping, rows: int) -> Sequence | Mapping:
    """A list for each row of the prompt -> one for each row of the step."""
    if isinstance(given, Mapping):
        return given
    return [one for one in given for _ in range(rows // len(given))]
