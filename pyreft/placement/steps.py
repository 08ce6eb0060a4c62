"""The forward passes of one generation -> the part of the prompt that each one sees.

prompt, placed once  ->  its window in each step: prefill, a chunk, one token, or all again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from pyreft.annotations import Arguments
from pyreft.installed.caches import RecurrentStateError, cached_tokens
from pyreft.installed.steps import generate_calls_model
from pyreft.placement.placement import Directions, Placement


class Step(NamedTuple):
    """The tokens that one forward pass of a generation sees.

    Args:
        start: The number of tokens before them.
        length: The number of tokens in a row.
        rows: The number of rows: those of the prompt, once for each beam.
    """

    start: int
    length: int
    rows: int


class Steps:
    """Reads the steps of one generation, and makes sure that they follow each other.

    A step continues after the tokens that were seen, or sees all of them again and more, as
    without a cache. If it does neither, its cache was not found, and the step would be edited as
    if it were a prompt.

    Args:
        prompt: T, the number of columns of the prompt.
        cached: The number of them that a cache held before the first step.
    """

    def __init__(self, prompt: int, cached: int = 0) -> None:
        self._prompt, self._seen, self._any = prompt, cached, False

    def read(self, args: tuple[object, ...], kwargs: Arguments, whole: bool = False) -> Step:
        """The tokens that a step sees.

        Args:
            args, kwargs: The arguments of the base model in the step.
            whole: Whether the first step must see the whole prompt, because the steps are those of
                a module inside the base model, which may give it another prompt than it was given.

        Raises:
            ValueError: If the arguments do not show which tokens the step sees.
            UnsupportedReleaseError: If the step does not follow the steps before it.
        """
        names = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
        given = (kwargs.get(name) for name in names)
        tokens = next((value for value in given if value is not None), None)
        if args or tokens is None:
            raise ValueError(
                "this generation method calls the model on its own texts, whose prompts are not "
                "known: a ReftModel cannot be used with it."
            )
        step = Step(self._before(kwargs), tokens.shape[1], tokens.shape[0])
        end = step.start + step.length
        if whole and not self._any and (step.start, end) != (self._seen, self._prompt):
            refuse_inside()
        # The last token of the prompt may come twice: candidates of early layers begin with it.
        earliest = max(1, min(self._seen, self._prompt) - 1) if self._seen else 0
        continues = earliest <= step.start <= self._seen
        again = step.start == 0 and end > self._seen and end >= self._prompt
        if not (continues or again):
            generate_calls_model.refuse(
                "generation with an adapter",
                f"a step that sees the tokens {step.start} to {end - 1} after one that ended with "
                f"token {self._seen - 1}, of a prompt of {self._prompt} tokens; it was called with "
                + ", ".join(name for name, value in kwargs.items() if value is not None),
            )
        self._seen, self._any = max(self._seen, end), True
        return step

    def _before(self, kwargs: Arguments) -> int:
        """The number of tokens before a step, by its cache; by the steps before it, if the state
        that it continues from (Mamba's) does not count its tokens.
        """
        try:
            return cached_tokens(kwargs)
        except RecurrentStateError:
            return self._seen

    def require_all(self) -> None:
        """Make sure that the whole prompt was in the steps of a generation that ended.

        Raises:
            ValueError: If there was no step, because another module than the base model ran.
            UnsupportedReleaseError: If a part of the prompt was in no step.
        """
        if not self._any:
            refuse_inside()
        if self._seen < self._prompt:
            generate_calls_model.refuse(
                "generation with an adapter",
                f"steps that saw {self._seen} of the {self._prompt} tokens of the prompt",
            )


def refuse_inside() -> NoReturn:
    """Raise the ValueError for a model that generates by a module inside it, in its own way."""
    raise ValueError(
        "this model generates by a module inside it, which is given another prompt or runs without "
        "what is edited, so this prompt cannot be edited: wrap that module (its language model)."
    )


def step_window(prompt: Placement, step: Step) -> Placement | None:
    """The part of a placed prompt that a step of generation sees.

    Args:
        prompt: The placement on the prompt.
        step: The tokens of the step.

    Returns:
        Masks of the step's shape, or None if the step edits nothing. What only hidden states show
        is placed in any step that computes them.
    """
    start, length, rows = step
    if not prompt.masks:
        return prompt
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
    """The mask of a window's tokens after the prompt, (B, n), restricted to the edited rows."""
    after = min(length, max(0, start + length - mask.shape[1]))
    rest = mask.new_full((mask.shape[0], after), generated)
    return rest if prompt.rows is None else rest & prompt.rows[:, None]


def _repeat(given: Directions, rows: int) -> Directions:
    """A list for each row of the prompt -> one for each row of the step."""
    if isinstance(given, Mapping):
        return given
    return [one for one in given for _ in range(rows // len(given))]
