"""The arguments of `forward` and `generate` -> the placement of every intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.config import InterventionConfig
from pyreft.modeling.boundary import as_tensor, find_tokens
from pyreft.modeling.placement import Placement, place
from pyreft.positions import PositionSpec

logger = logging.get_logger(__name__)

# What packing collators tell flash attention and state space models.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
# Needs no prompt to be found.
_ALL = PositionSpec.parse("all")


def place_batch(
    base: PreTrainedModel,
    configs: Sequence[InterventionConfig],
    sites: Sequence[int],
    inputs: Mapping[str, Any],
    completion_mask: Tensor | None = None,
    intervention_locations: Tensor | None = None,
    subspaces: Any = None,
) -> Placement | None:
    """Place the interventions for one call of the base model.

    Args:
        base: The base model.
        configs: The interventions.
        sites: Which of them share a site.
        inputs: What the base model is called with.
        completion_mask, intervention_locations, subspaces: See `ReftModel.forward`.

    Returns:
        The placement, or None if nothing is edited.
    """
    ids, embeddings = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if ids is None and embeddings is None:
        return None
    given = as_tensor("inputs_embeds", embeddings) if ids is None else as_tensor("input_ids", ids)
    if given.dim() != (3 if ids is None else 2):
        raise ValueError(
            "input_ids must have the shape (batch, tokens), and inputs_embeds (batch, tokens, "
            f"width); got {tuple(given.shape)}."
        )
    shape, device = (given.shape[0], given.shape[1]), given.device
    mask = inputs.get("attention_mask")
    directions = broadcast_subspaces(subspaces, len(configs), shape[0])
    if _cached_tokens(inputs) and intervention_locations is None:
        return _place_generated(configs, shape, device, mask, directions)
    no_boundary = all(config.positions == _ALL for config in configs)
    told = (intervention_locations, completion_mask, inputs.get("labels"))
    if base.training and not no_boundary and all(one is None for one in told):
        _warn_if_trained_blindly(base)
    tokens = find_tokens(
        shape,
        device,
        input_ids=ids,
        attention_mask=mask,
        labels=inputs.get("labels") if _reads_left_to_right(base) else None,
        completion_mask=completion_mask,
        position_ids=inputs.get("position_ids"),
        packed=any(inputs.get(name) is not None for name in _PACKED),
        explicit=intervention_locations is not None or no_boundary,
    )
    return _warn_if_nowhere(place(configs, sites, tokens, intervention_locations, directions))


def place_prompt(
    configs: Sequence[InterventionConfig],
    sites: Sequence[int],
    inputs: Mapping[str, Any],
    intervention_locations: Tensor | None = None,
    subspaces: Any = None,
) -> Placement | None:
    """Place the interventions for a call of `generate`: all that it is given is the prompt.

    Args and Returns: as for `place_batch`; `inputs` must hold the attention mask that is used.
    """
    ids, mask = inputs.get("input_ids"), inputs["attention_mask"]
    if cached := _cached_tokens(inputs):
        logger.warning_once(
            f"generate continues from a cache of {cached} tokens: they are kept as they are, and "
            "only positions in the rest of the prompt are edited."
        )
    same = ids is not None and ids.shape == mask.shape
    tokens = find_tokens(
        (mask.shape[0], mask.shape[1]),
        mask.device,
        input_ids=ids if same else None,
        attention_mask=mask,
    )
    directions = broadcast_subspaces(subspaces, len(configs), mask.shape[0])
    return _warn_if_nowhere(place(configs, sites, tokens, intervention_locations, directions))


def prompt_mask(inputs: Mapping[str, Any], generation_config: Any) -> Tensor:
    """The attention mask of a prompt, (B, T): the one given, else what `generate` would infer.

    `generate` takes a pad token for padding only if it is not an end token as well: with
    pad == eos, real tokens would be hidden.
    """
    given = inputs.get("attention_mask")
    if given is not None:
        return given
    embeddings, ids = inputs.get("inputs_embeds"), inputs.get("input_ids")
    if embeddings is not None:
        return torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    if ids is None:
        raise ValueError("generate needs a prompt: give input_ids or inputs_embeds.")
    settings = inputs.get("generation_config") or generation_config
    pad = inputs.get("pad_token_id", settings.pad_token_id)
    ends = inputs.get("eos_token_id", settings.eos_token_id)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).long()


def broadcast_subspaces(subspaces: Any, count: int, batch: int) -> dict[int, Sequence]:
    """For each intervention that is not edited whole, a list of directions for each row."""
    if subspaces is None:
        return {}
    if isinstance(subspaces, Tensor):
        if subspaces.dim() != 3:
            raise ValueError(
                "subspaces as a tensor must have the shape (batch, interventions, directions), "
                f"got {tuple(subspaces.shape)}."
            )
        subspaces = subspaces.permute(1, 0, 2).tolist()
    given = [subspaces] if isinstance(subspaces, int) else subspaces
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"subspaces are lists of indices of directions, got {subspaces!r}.")
    if all(isinstance(index, int) for index in given):
        return dict.fromkeys(range(count), [list(given)] * batch)
    if len(given) != count:
        raise ValueError(f"subspaces are for {len(given)} interventions, the model has {count}.")
    for one in given:
        rows = one is None or (isinstance(one, (list, tuple)) and len(one) == batch)
        if not rows or not all(isinstance(row, (list, tuple)) for row in one or ()):
            raise ValueError(
                "subspaces of an intervention are None, or a list of directions for each of the "
                f"{batch} rows; got {one!r}."
            )
    return {index: one for index, one in enumerate(given) if one is not None}


def _place_generated(
    configs: Sequence[InterventionConfig],
    shape: tuple[int, int],
    device: torch.device,
    mask: Tensor | None,
    directions: Mapping[int, Sequence],
) -> Placement | None:
    """Tokens after a filled cache are generated: only `all` and `completion` edit them."""
    text = torch.ones(shape, dtype=torch.bool, device=device)
    if mask is not None and mask.dim() == 2:
        text = mask[:, -shape[1] :].to(device=device, dtype=torch.bool)
    specs = {i: c.positions for i, c in enumerate(configs) if c.positions is not None}
    masks = {i: text for i, spec in specs.items() if spec.edits_completion}
    return Placement(masks, subspaces=directions) if masks else None


def _cached_tokens(inputs: Mapping[str, Any]) -> int:
    cache = inputs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _reads_left_to_right(base: PreTrainedModel) -> bool:
    """Whether labels per token are a continuation; those of a tagger or masked LM are not."""
    return bool(base.can_generate())


def _warn_if_trained_blindly(base: PreTrainedModel) -> None:
    if torch.is_grad_enabled() and _reads_left_to_right(base):
        logger.warning_once(
            "The model is being trained, and called without labels: all of each row is taken for "
            "its prompt, which it is not if the loss is on a part of it. Give completion_mask with "
            "the batch, nonzero on that part."
        )


def _warn_if_nowhere(placement: Placement | None) -> Placement | None:
    if placement is None:
        logger.warning_once(
            "No intervention has positions, so this call runs the bare base model. Say positions "
            'in the config ("f7+l7"), or give intervention_locations with the batch.'
        )
    return placement
