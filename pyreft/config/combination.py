"""Adapters with weights -> the interventions of one adapter, whose edit is their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from pyreft.config.intervention import InterventionConfig, share_no_head
from pyreft.interventions import constructor_arguments, join, kind_of, scale
from pyreft.positions.spans import Ends, widest

# One intervention of an adapter: the adapter's index, the intervention, the adapter's weight.
Part = tuple[int, InterventionConfig, float]


def combine(
    adapters: Sequence[tuple[Sequence[InterventionConfig], float]],
) -> list[InterventionConfig]:
    """The weighted sum of adapters on one base model.

    Interventions on different components or layers, or at positions that do not overlap, are all
    kept. Those on the same component, layer and positions become one, see
    `pyreft.interventions.join`. Weights that an adapter ties stay tied if the same is done to them.

    Args:
        adapters: The interventions of each with their modules, as `reft_config.representations`
            of a model has them, and the weight of its edits. They are not changed.

    Returns:
        Interventions with new modules, for `ReftConfig(representations=...)`.

    Raises:
        ValueError: If positions overlap without being the same, on short prompts as well, or edits
            cannot be scaled or joined.
    """
    groups: list[list[Part]] = []
    for index, (configs, weight) in enumerate(adapters):
        if len(adapters) > 1:
            _require_positions(index, configs)
        for config in configs:
            part = (index, config, weight)
            group = next((group for group in groups if _is_of(part, group)), [])
            if not group:
                groups.append(group)
            group.append(part)
    _require_one_rule([configs for configs, _ in adapters])
    made: dict[tuple[tuple[int, float], ...], nn.Module] = {}
    return [_combined(group, made) for group in groups]


def _require_positions(index: int, configs: Sequence[InterventionConfig]) -> None:
    """Refuse two interventions on one component and layer without positions of their own."""
    left_open = [config.place for config in configs if config.positions is None]
    if several := [place for place in left_open if left_open.count(place) > 1]:
        raise ValueError(
            f"adapter {index} has several interventions at {several[0]} and leaves their positions "
            "to every batch, so they cannot be matched with those of another adapter: give it "
            "positions with record_positions."
        )


def _is_of(part: Part, group: Sequence[Part]) -> bool:
    """Whether an intervention edits the same hidden states as a group of others.

    Raises:
        ValueError: If it edits only a part of them, or it is not known which it edits.
    """
    index, config, _ = part
    same = False
    for earlier, other, _ in group:
        if earlier == index or (config.layer, config.component) != (other.layer, other.component):
            continue
        if share_no_head(config, other):
            continue
        if config.heads != other.heads:
            raise ValueError(
                f"adapters {earlier} and {index} edit heads {other.heads or 'all'} and "
                f"{config.heads or 'all'} of {config.place}, which share some and not all."
            )
        if (config.positions is None) != (other.positions is None):
            raise ValueError(
                f"adapter {earlier if other.positions is None else index} leaves the positions at "
                f"{config.place} to every batch, so it is not known whether they are those of the "
                "other: give it some with record_positions."
            )
        same = config.positions == other.positions
        met = config.positions and other.positions and config.positions.overlaps(other.positions)
        if met and not same:
            raise ValueError(
                f"adapters {earlier} and {index} edit {config.place} at {other.positions!r} and at "
                f"{config.positions!r}, which share tokens and are not the same."
            )
    return same


def _require_one_rule(adapters: Sequence[Sequence[InterventionConfig]]) -> None:
    """Refuse f<n> and l<n> that one adapter would apply to short prompts otherwise than several.

    Whether a prompt is too short depends on the sum of all f<n> and l<n> of an adapter on one
    component and layer, see `PositionSpec.select`.
    """
    places: dict[tuple[str, str | None], dict[int, Ends]] = {}
    for index, configs in enumerate(adapters):
        for config in configs:
            ends = config.positions.ends if config.positions else Ends()
            for kind in (None, *dict(ends.within)):
                if (inside := ends.of_kind(kind)) != Ends():
                    at = places.setdefault((config.place, kind), {})
                    at[index] = widest([inside, at.get(index, Ends())])
    for (place, kind), at in places.items():
        (one, ends), *others = at.items()
        for other, differing in others:
            if differing != ends:
                both = widest([ends, differing])
                raise ValueError(
                    f"adapters {one} and {other} edit {_name_ends(ends, kind)} and "
                    f"{_name_ends(differing, kind)} of {place}: in prompts of fewer than "
                    f"{both.first + both.last} tokens one adapter would edit other tokens "
                    "than both do. Activate both with set_adapter, which takes weights too, or "
                    "train them at the same positions."
                )


def _name_ends(ends: Ends, kind: str | None) -> str:
    named = [f"f{ends.first}"] * bool(ends.first) + [f"l{ends.last}"] * bool(ends.last)
    return "+".join(name if kind is None else f"{kind}:{name}" for name in named)


def _combined(
    group: Sequence[Part], made: dict[tuple[tuple[int, float], ...], nn.Module]
) -> InterventionConfig:
    _, config, _ = group[0]
    parts = [(_module(one), weight) for _, one, weight in group]
    key = tuple((id(module), weight) for module, weight in parts)
    if key not in made:
        try:
            scaled = [scale(module, weight) for module, weight in parts]
            made[key] = scaled[0] if len(scaled) == 1 else join(scaled)
        except ValueError as error:
            raise ValueError(f"cannot combine what edits {config.place}: {error}") from error
    module = made[key]
    arguments = constructor_arguments(module)
    return replace(
        config, kind=kind_of(module), arguments=arguments, intervention=module, tied_to=None
    )


def _module(config: InterventionConfig) -> nn.Module:
    if config.intervention is None:
        raise ValueError(
            f"the intervention at {config.place} has no module yet: combine the representations "
            "of a model, model.reft_config.representations."
        )
    return config.intervention
