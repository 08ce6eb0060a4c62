"""Position specs of the interventions -> positions in one example."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyreft.positions import NO_POSITION, PositionSpec, Tokens
from pyreft.positions.spans import widest


def spec_of_each(
    spec: PositionSpec, num_interventions: int, share_weights: bool
) -> list[PositionSpec]:
    """The spec of each intervention.

    Args:
        spec: The positions that are edited.
        num_interventions: Number of interventions: one for each layer with `share_weights`;
            without, one for each layer and each part of the spec, all layers at the first part
            before all layers at the second.
        share_weights: Whether each intervention edits all positions.

    Raises:
        ValueError: If the number is not a multiple of the parts of a spec that is not shared.
    """
    parts = [spec] if share_weights else spec.parts()
    if not isinstance(num_interventions, int) or num_interventions < 1:
        raise ValueError(f"num_interventions must be 1 or more, got {num_interventions!r}.")
    if num_interventions % len(parts):
        raise ValueError(
            f"num_interventions is {num_interventions}, positions {str(spec)!r} have {len(parts)} "
            "parts: with weights that are not shared there is one intervention for each layer "
            f"and each part, so {len(parts)} times the number of layers."
        )
    return [part for part in parts for _ in range(num_interventions // len(parts))]


def locate(
    specs: Sequence[PositionSpec], ids: Sequence[int], prompt_length: int
) -> list[list[int]] | None:
    """(I, P) positions of one example, filled up with -100.

    Args:
        specs: The spec of each intervention.
        ids: Token ids of prompt and completion.
        prompt_length: The number of prompt tokens.

    Returns:
        None if positions are in the completion, which `generate` extends, or are of a kind of
        tokens that only the model knows: it computes those from its specs.

    Raises:
        ValueError: If an explicit position is outside the prompt, or the prompt is empty.
    """
    if any(spec.edits_completion or spec.kinds for spec in specs):
        return None
    prompt = torch.arange(len(ids))[None] < prompt_length
    tokens = Tokens(prompt, ~prompt, torch.as_tensor(ids)[None])
    site = widest(spec.ends for spec in specs)
    # Each spec is applied once: interventions of many layers share a few.
    chosen = {s: s.select(tokens, site)[0].nonzero().flatten().tolist() for s in set(specs)}
    longest = max(len(positions) for positions in chosen.values())
    return [chosen[s] + [NO_POSITION] * (longest - len(chosen[s])) for s in specs]
