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
from pyreft.base_model.stacks import has_two_stacks, size_of
from pyreft.base_model.towers import TOWER
from pyreft.installed.caches import UncountedStateError, cached_tokens
from pyreft.placement.arguments import EditArguments
from pyreft.placement.boundary import as_tensor, find_decoder_tokens, find_tokens
from pyreft.placement.codebooks import one_row_each
from pyreft.placement.hidden_tokens import HiddenTokens
from pyreft.placement.placement import Directions, Placement, place, place_generated
from pyreft.placement.targets import Target
from pyreft.positions import PositionSpec, Tokens

logger = logging.get_logger(__name__)

# What packing collators pass to flash attention and state space models.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
# Does not depend on where the prompt ends.
_ALL = PositionSpec.parse("all")


@dataclass(frozen=True)
class Batch:
    """The tokens of one call of the base model, or the prompt that `generate` continues.

    Args:
        rows: B, the number of rows; of a batch without text, that of its pictures or sounds.
        tokens: For each stack of the model, the prompts and completions that it reads.
        text: (B, T) bool, for tokens that follow a filled cache: false on padding.
        stack: The stack that reads the tokens of `text`.
        ids_rows: How many rows of ids the model reads for each row, those of a sound's codebooks.
    """

    rows: int
    tokens: Mapping[str | None, Tokens]
    text: Tensor | None = None
    stack: str | None = None
    ids_rows: int = 1

    def of(self, rows: Tensor) -> Batch:
        """The batch with only some of its rows."""
        tokens = {stack: seen.of(rows) for stack, seen in self.tokens.items()}
        text = None if self.text is None else self.text[rows]
        return replace(self, rows=len(rows), tokens=tokens, text=text)

    def place(self, targets: Sequence[Target], given: EditArguments) -> Placement | None:
        """Place the interventions of an adapter.

        Args:
            targets: The interventions, and where they edit.
            given: The call's arguments for edits.

        Returns:
            The placement, or None if nothing is edited.
        """
        directions = _broadcast_subspaces(given.subspaces, len(targets), self.rows)
        explicit, placed, after = given.intervention_locations, None, None
        of_text = self.ids_rows
        if of_text > 1 and explicit is not None and len(explicit) == self.rows * of_text:
            explicit = explicit[::of_text]
        if self.tokens:
            placed = place(targets, self.tokens, explicit, directions, given.in_order)
        if self.text is not None:
            after = place_generated(targets, self.stack, self.text, directions)
        if placed is not None and after is not None:
            placed = replace(placed, masks=placed.masks | after.masks)
        placed = placed or after
        if not any(target.component.stack == TOWER for target in targets):
            return placed
        later = HiddenTokens(targets, explicit, directions, given.in_order)
        return replace(placed or Placement({}), hidden_tokens=later)


def read_batch(
    base: PreTrainedModel, targets: Sequence[Target], inputs: Arguments, given: EditArguments
) -> Batch | None:
    """Find prompts and completions in the arguments of the base model.

    Args:
        base: The base model.
        targets: The interventions of all adapters that may edit.
        inputs: The arguments of the base model.
        given: The call's arguments for edits.

    Returns:
        The batch, or None if it has no token and no intervention is in a part that reads no text.
    """
    has_locations, two_stacks = given.intervention_locations is not None, has_two_stacks(base)
    completion_mask = given.completion_mask
    explicit = has_locations or all(target.positions == _ALL for target in targets)
    cached = _cached(inputs, explicit)
    generated = cached > 0 and not has_locations
    tokens: dict[str | None, Tokens | None] = {}
    if two_stacks:
        tokens["encoder"] = _encoder_tokens(inputs, explicit)
    ids_rows = max((target.component.ids_rows for target in targets), default=1)
    one = inputs if ids_rows == 1 else one_row_each(inputs, ids_rows)
    # A token may have several ids.
    codebooks = size_of(base.config, "num_codebooks") is not None
    if two_stacks and not generated:
        tokens["decoder"] = _decoder_tokens(base, inputs, completion_mask, explicit, cached)
    elif not generated:
        tokens[None] = _tokens(base, one, completion_mask, explicit, cached, codebooks)
    seen = {stack: found for stack, found in tokens.items() if found is not None}
    prefix = "decoder_" if two_stacks else ""
    later = read_given(one, prefix, cached, codebooks) if generated else None
    rows = [len(found.prompt) for found in seen.values()] + ([later.shape[0]] if later else [])
    if not rows and all(target.component.stack != TOWER for target in targets):
        return None
    rows += [len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()]
    text = None if later is None else find_tokens(*later, explicit=True).text
    stack = "decoder" if two_stacks else None
    return Batch(next(iter(rows), 0), seen, text, stack, ids_rows)


def _cached(inputs: Arguments, explicit: bool) -> int:
    """The number of cached tokens before a call; if `explicit`, 0 when it is unknown."""
    try:
        return cached_tokens(inputs)
    except UncountedStateError:
        if not explicit:
            raise
        return 0


class Given(NamedTuple):
    """The tokens passed to a stack of layers, (B, T)."""

    shape: tuple[int, int]
    device: torch.device
    ids: Tensor | None
    mask: Tensor | None


def read_given(
    inputs: Arguments, prefix: str = "", cached: int = 0, codebooks: bool = False
) -> Given | None:
    """The tokens among the arguments of a call, None if there are none.

    Args:
        inputs: The arguments.
        prefix: "decoder_" for those of a decoder.
        cached: The number of tokens before them, in a cache; a mask may include those.
        codebooks: Whether a token may have several ids, those of a sound's codebooks.

    Raises:
        ValueError: If their shape is wrong.
        TypeError: If they are not tensors.
    """
    ids, embeddings = inputs.get(f"{prefix}input_ids"), inputs.get(f"{prefix}inputs_embeds")
    if ids is None and embeddings is None:
        return None
    name, value = ("input_ids", ids) if embeddings is None else ("inputs_embeds", embeddings)
    given = as_tensor(prefix + name, value)
    # The decoder of a sound may read several ids for each token, (batch, tokens, channels).
    several = (codebooks or prefix != "") and embeddings is None and given.dim() == 3
    if given.dim() != (2 if embeddings is None else 3) and not several:
        raise ValueError(
            f"{prefix}input_ids must have the shape (batch, tokens), and {prefix}inputs_embeds "
            f"(batch, tokens, width); got {tuple(given.shape)}."
        )
    rows, count = given.shape[:2]
    mask = inputs.get(f"{prefix}attention_mask")
    if isinstance(mask, Tensor) and mask.shape == (rows, cached + count):
        mask = mask[:, cached:]
    return Given((rows, count), given.device, None if several else ids, mask)


def _tokens(
    base: PreTrainedModel,
    inputs: Arguments,
    completion_mask: Tensor | None,
    explicit: bool,
    cached: int,
    codebooks: bool,
) -> Tokens | None:
    given = read_given(inputs, cached=cached, codebooks=codebooks)
    if not explicit and completion_mask is None and inputs.get("labels") is None:
        _warn_without_labels(base)
    return given and find_tokens(
        *given,
        labels=inputs.get("labels") if _reads_left_to_right(base) else None,
        completion_mask=completion_mask,
        position_ids=inputs.get("position_ids"),
        packed=any(inputs.get(name) is not None for name in _PACKED),
        explicit=explicit,
    )


def _encoder_tokens(inputs: Arguments, explicit: bool) -> Tokens | None:
    """The encoder's prompts; None if its outputs are given, because it then does not run."""
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
    if labels is not None and as_tensor("labels", labels).dim() not in (2, 3):
        raise ValueError(
            "labels must have the shape (batch, decoder tokens), or (batch, decoder tokens, "
            f"channels), got {tuple(labels.shape)}."
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
    if predicts is not None and predicts.dim() == 3:
        predicts = predicts.any(-1)
    if completion_mask is not None:
        predicts, source = as_tensor("completion_mask", completion_mask).bool(), "completion_mask"
    return find_decoder_tokens(*given, predicts=predicts, source=source, explicit=explicit)


def _broadcast_subspaces(subspaces: object, count: int, batch: int) -> dict[int, Directions]:
    """For each intervention that edits some directions only, a list of them for each row.

    Or a dict, which its module gets unchanged.
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
    # Scripts whose rows are alike give one list for all rows.
    given = [one * batch if isinstance(one, list) and len(one) == 1 else one for one in given]
    if len(given) != count:
        raise ValueError(f"subspaces are for {len(given)} interventions, the model has {count}.")
    for one in given:
        if isinstance(one, Mapping):
            continue  # interpreted by a user-defined module
        rows = one is None or (isinstance(one, (list, tuple)) and len(one) == batch)
        if not rows or not all(isinstance(row, (list, tuple)) for row in one or ()):
            raise ValueError(
                "subspaces of an intervention are None, or a list of directions for each of the "
                f"{batch} rows; got {one!r}."
            )
    return {index: one for index, one in enumerate(given) if one is not None}


def _reads_left_to_right(base: PreTrainedModel) -> bool:
    """Whether labels per token mark a completion; those of a tagger or masked LM do not."""
    return bool(base.can_generate())


def _warn_without_labels(base: PreTrainedModel) -> None:
    if base.training and torch.is_grad_enabled() and _reads_left_to_right(base):
        logger.warning_once(
            "The model is being trained, and called without labels: each whole row is taken as a "
            "prompt. This is wrong if the loss is computed on a part of the row: then give "
            "completion_mask with the batch, nonzero on that part."
        )
