"""The arguments of `forward` -> the placement of every intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.annotations import Arguments
from pyreft.base_model.stacks import has_two_stacks
from pyreft.installed.caches import UncountedStateError, cached_tokens
from pyreft.placement.arguments import EditArguments
from pyreft.placement.boundary import as_tensor, find_decoder_tokens, find_tokens
from pyreft.placement.placement import Directions, Placement, Target, place, place_generated
from pyreft.positions import PositionSpec, Tokens

logger = logging.get_logger(__name__)

# What packing collators tell flash attention and state space models.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
# Needs no prompt to be found.
_ALL = PositionSpec.parse("all")


@dataclass(frozen=True)
class Batch:
    """What one call of the base model reads, or the prompt that `generate` goes on from.

    Args:
        rows: B, the number of rows.
        tokens: What each stack of the model reads of a text's beginning: prompt and completion.
        text: (B, T) bool, of tokens that follow a filled cache: true where there is no padding.
        stack: The stack that those are of.
    """

    rows: int
    tokens: Mapping[str | None, Tokens]
    text: Tensor | None = None
    stack: str | None = None

    def of(self, rows: Tensor) -> Batch:
        """Some rows of it alone."""
        tokens = {stack: seen.of(rows) for stack, seen in self.tokens.items()}
        return Batch(len(rows), tokens, None if self.text is None else self.text[rows], self.stack)

    def place(self, targets: Sequence[Target], given: EditArguments) -> Placement | None:
        """Place the interventions of an adapter.

        Args:
            targets: The interventions, and where they edit.
            given: What the call says of edits.

        Returns:
            The placement, or None if nothing is edited.
        """
        directions = _broadcast_subspaces(given.subspaces, len(targets), self.rows)
        placed = None
        if self.tokens:
            explicit = given.intervention_locations
            placed = place(targets, self.tokens, explicit, directions, given.in_order)
        if self.text is None:
            return placed
        after = place_generated(targets, self.stack, self.text, directions)
        if placed is None or after is None:
            return placed or after
        return replace(placed, masks=placed.masks | after.masks)


def read_batch(
    base: PreTrainedModel, targets: Sequence[Target], inputs: Arguments, given: EditArguments
) -> Batch | None:
    """Find prompts and completions in what the base model is called with.

    Args:
        base: The base model.
        targets: The interventions of all adapters that may edit.
        inputs: What the base model is called with.
        given: What the call says of edits.

    Returns:
        The batch, or None if there is no token in it.
    """
    told, two_stacks = given.intervention_locations is not None, has_two_stacks(base)
    completion_mask = given.completion_mask
    explicit = told or all(target.positions == _ALL for target in targets)
    cached = _cached(inputs, explicit)
    generated = cached > 0 and not told
    tokens: dict[str | None, Tokens | None] = {}
    if two_stacks:
        tokens["encoder"] = _encoder_tokens(inputs, explicit)
    if two_stacks and not generated:
        tokens["decoder"] = _decoder_tokens(base, inputs, completion_mask, explicit, cached)
    elif not generated:
        tokens[None] = _tokens(base, inputs, completion_mask, explicit, cached)
    seen = {stack: found for stack, found in tokens.items() if found is not None}
    prefix = "decoder_" if two_stacks else ""
    later = read_given(inputs, prefix, cached) if generated else None
    rows = [len(found.prompt) for found in seen.values()] + ([later.shape[0]] if later else [])
    if not rows:
        return None
    text = None if later is None else find_tokens(*later, explicit=True).text
    return Batch(rows[0], seen, text, "decoder" if two_stacks else None)


def _cached(inputs: Arguments, explicit: bool) -> int:
    """The number of tokens before those of a call; where that does not matter, 0 if unknown."""
    try:
        return cached_tokens(inputs)
    except UncountedStateError:
        if not explicit:
            raise
        return 0


class Given(NamedTuple):
    """What a stack of layers is given to read, (B, T)."""

    shape: tuple[int, int]
    device: torch.device
    ids: Tensor | None
    mask: Tensor | None


def read_given(inputs: Arguments, prefix: str = "", cached: int = 0) -> Given | None:
    """The tokens among the arguments of a call, None if there are none.

    Args:
        inputs: The arguments.
        prefix: "decoder_" for those of a decoder.
        cached: The number of tokens before them, in a cache; a mask may begin with those.

    Raises:
        ValueError: If they have another shape.
        TypeError: If they are no tensors.
    """
    ids, embeddings = inputs.get(f"{prefix}input_ids"), inputs.get(f"{prefix}inputs_embeds")
    if ids is None and embeddings is None:
        return None
    name, value = ("input_ids", ids) if embeddings is None else ("inputs_embeds", embeddings)
    given = as_tensor(prefix + name, value)
    if given.dim() != (2 if embeddings is None else 3):
        raise ValueError(
            f"{prefix}input_ids must have the shape (batch, tokens), and {prefix}inputs_embeds "
            f"(batch, tokens, width); got {tuple(given.shape)}."
        )
    rows, count = given.shape[:2]
    mask = inputs.get(f"{prefix}attention_mask")
    if isinstance(mask, Tensor) and mask.shape == (rows, cached + count):
        mask = mask[:, cached:]
    return Given((rows, count), given.device, ids, mask)


def _tokens(
    base: PreTrainedModel,
    inputs: Arguments,
    completion_mask: Tensor | None,
    explicit: bool,
    cached: int,
) -> Tokens | None:
    given = read_given(inputs, cached=cached)
    if not explicit and completion_mask is None and inputs.get("labels") is None:
        _warn_if_trained_blindly(base)
    return given and find_tokens(
        *given,
        labels=inputs.get("labels") if _reads_left_to_right(base) else None,
        completion_mask=completion_mask,
        position_ids=inputs.get("position_ids"),
        packed=any(inputs.get(name) is not None for name in _PACKED),
        explicit=explicit,
    )


def _encoder_tokens(inputs: Arguments, explicit: bool) -> Tokens | None:
    """An encoder reads prompts; it does not run where its outputs are given."""
    given = read_given(inputs) if inputs.get("encoder_outputs") is None else None
    return given and find_tokens(*given, explicit=explicit)


def _decoder_tokens(
    base: PreTrainedModel,
    inputs: Arguments,
    completion_mask: Tensor | None,
    explicit: bool,
    cached: int,
) -> Tokens | None:
    labels, given = inputs.get("labels"), read_given(inputs, "decoder_", cached)
    if labels is not None and not _reads_left_to_right(base):
        labels = None
    if labels is not None and as_tensor("labels", labels).dim() != 2:
        raise ValueError(
            f"labels must have the shape (batch, decoder tokens), got {tuple(labels.shape)}."
        )
    if given is None and labels is not None:
        shape = (labels.shape[0], labels.shape[1])
        given = Given(shape, labels.device, None, inputs.get("decoder_attention_mask"))
    elif given is None and (read := read_given(inputs)) is not None:
        # BART and classifiers give the decoder what the encoder reads, shifted by one.
        given = read._replace(ids=None)
    if given is None:
        return None
    predicts, source = None if labels is None else labels != -100, "labels"
    if completion_mask is not None:
        predicts, source = as_tensor("completion_mask", completion_mask).bool(), "completion_mask"
    return find_decoder_tokens(*given, predicts=predicts, source=source, explicit=explicit)


def _broadcast_subspaces(subspaces: object, count: int, batch: int) -> dict[int, Directions]:
    """For each intervention that is not edited whole, a list of directions for each row.

    Or a dict, which its module gets as it is.
    """
    if subspaces is None:
        return {}
    if isinstance(subspaces, Tensor):
        if subspaces.dim() != 3:
            raise ValueError(
                "subspaces as a tensor must have the shape (batch, interventions, directions), "
                f"got {tuple(subspaces.shape)}."
            )
        subspaces = subspaces.permute(1, 0, 2).tolist()
    given: object = [subspaces] if isinstance(subspaces, int) else subspaces
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"subspaces are lists of indices of directions, got {subspaces!r}.")
    if all(isinstance(index, int) for index in given):
        return dict.fromkeys(range(count), [list(given)] * batch)
    # As scripts have it whose rows are alike.
    given = [one * batch if isinstance(one, list) and len(one) == 1 else one for one in given]
    if len(given) != count:
        raise ValueError(f"subspaces are for {len(given)} interventions, the model has {count}.")
    for one in given:
        if isinstance(one, Mapping):
            continue  # what a module of the user's own makes of it
        rows = one is None or (isinstance(one, (list, tuple)) and len(one) == batch)
        if not rows or not all(isinstance(row, (list, tuple)) for row in one or ()):
            raise ValueError(
                "subspaces of an intervention are None, or a list of directions for each of the "
                f"{batch} rows; got {one!r}."
            )
    return {index: one for index, one in enumerate(given) if one is not None}


def _reads_left_to_right(base: PreTrainedModel) -> bool:
    """Whether labels per token are a continuation; those of a tagger or masked LM are not."""
    return bool(base.can_generate())


def _warn_if_trained_blindly(base: PreTrainedModel) -> None:
    if base.training and torch.is_grad_enabled() and _reads_left_to_right(base):
        logger.warning_once(
            "The model is being trained, and called without labels: all of each row is taken for "
            "its prompt, which it is not if the loss is on a part of it. Give completion_mask with "
            "the batch, nonzero on that part."
        )
