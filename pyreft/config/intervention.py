"""One intervention: its kind, its arguments, and what it edits; the keys of several."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from pyreft.annotations import Arguments, Json
from pyreft.config.fields import read_heads, read_kind
from pyreft.interventions import constructor_arguments, kind_of
from pyreft.positions import PositionSpec

logger = logging.getLogger(__name__)

# Upstream's keys of a representation that have one meaningful value, or none, in ReFT.
_UPSTREAM_CONSTANTS: dict[str, object] = {
    "unit": "pos",
    "max_number_of_units": 1,
    "subspace_partition": None,
    "group_key": None,
    "moe_key": None,
    "source_representation": None,
    "hidden_source_representation": None,
    "latent_dim": None,
}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "layer": (int, type(None)),
    "component": (str,),
    "positions": (str, type(None)),
    "kind": (str,),
    "arguments": (dict, type(None)),
    "heads": (list, type(None)),
    "tied_to": (int, type(None)),
}


@dataclass(frozen=True)
class InterventionConfig:
    """One intervention of an adapter.

    Args:
        layer: Index of the layer, or None if `component` is a path.
        component: A name such as "block_output", or a path to a module followed by ".input" or
            ".output", such as "model.layers[3].mlp.output".
        positions: The positions it edits, or None if every batch gives them.
        kind: Name of its kind.
        arguments: Constructor arguments of the module, as JSON values; None if they are unknown.
            Then only the user's own code can construct the module.
        heads: Heads it edits, of a per-head component; all by default.
        tied_to: Index in the list of the intervention whose weights it shares.
        intervention: The module itself, where the user made it. Not part of the JSON.

    Raises:
        ValueError: If the positions do not parse.
        TypeError: If they are of another type.
    """

    layer: int | None = None
    component: str = "block_output"
    positions: PositionSpec | None = None
    kind: str = "loreft"
    arguments: Json | None = field(default_factory=dict)
    heads: tuple[int, ...] | None = None
    tied_to: int | None = None
    intervention: nn.Module | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.positions is not None and not isinstance(self.positions, PositionSpec):
            object.__setattr__(self, "positions", PositionSpec.parse(self.positions))

    @property
    def place(self) -> str:
        """The component and layer that it edits, for messages."""
        return self.component if self.layer is None else f"{self.component} of layer {self.layer}"

    @property
    def low_rank_dimension(self) -> int | None:
        """The rank, if the kind has one (upstream's name)."""
        return (self.arguments or {}).get("low_rank_dimension")

    @property
    def present_arguments(self) -> Json | None:
        """The constructor arguments of the module as it is now, or those it will be made with."""
        if self.intervention is not None:
            return constructor_arguments(self.intervention)
        return self.arguments and dict(self.arguments)

    @classmethod
    def from_representation(
        cls, entry: Arguments, default: str | type[nn.Module]
    ) -> InterventionConfig:
        """Read one of upstream's `representations`.

        Args:
            entry: The keys are layer, component, low_rank_dimension, and intervention (a module,
                a class or a kind) or intervention_type (a class). The keys positions, heads,
                arguments and any further argument of the intervention are ours.
            default: The kind or class if the entry names none.

        Raises:
            ValueError: If a key's value is not supported.
            TypeError: If the intervention is neither module, class nor kind.
        """
        rest = dict(entry)
        for name, constant in _UPSTREAM_CONSTANTS.items():
            if (value := rest.pop(name, constant)) != constant:
                raise ValueError(f"representation with {name}={value!r}: only {constant!r} works.")
        positions = rest.pop("positions", None)
        heads = rest.pop("heads", None)
        layer, component = rest.pop("layer", None), rest.pop("component", "block_output")
        if isinstance(layer, str) and layer.isdecimal():
            layer = int(layer)  # as scripts read it from "8;16"
        place = {
            # Upstream does not read the layer of a path.
            "layer": None if is_path(component) else layer,
            "component": component,
            "positions": positions,
            "heads": read_heads(heads),
        }
        link = rest.pop("intervention_link_key", None)
        if link is not None:
            raise ValueError(
                f"intervention_link_key={link!r}: to share weights, give the same module as "
                "`intervention` of both representations."
            )
        chosen, by_type = rest.pop("intervention", None), rest.pop("intervention_type", None)
        if chosen is not None and by_type is not None:
            raise ValueError(
                "a representation has an intervention (a module, a class or a kind) or an "
                "intervention_type (a class), not both."
            )
        chosen = next((c for c in (chosen, by_type) if c is not None), default)
        given = rest.pop("arguments", {})
        if not isinstance(given, Mapping):
            raise TypeError(f"arguments of a representation must be a dict, got {given!r}.")
        arguments = {**given, **{k: v for k, v in rest.items() if v is not None}}
        if isinstance(chosen, nn.Module):
            kind, made_with = _describe(chosen, arguments)
            return cls(**place, kind=kind, arguments=made_with, intervention=chosen)
        return cls(**place, kind=read_kind(chosen), arguments=arguments)

    def to_dict(self) -> Json:
        """JSON values.

        Raises:
            ValueError: If a position function has no name.
        """
        entry: Json = {"layer": self.layer, "component": self.component}
        entry["positions"] = None if self.positions is None else str(self.positions)
        entry |= {"kind": self.kind, "arguments": self.present_arguments}
        if self.heads is not None:
            entry["heads"] = list(self.heads)
        if self.tied_to is not None:
            entry["tied_to"] = self.tied_to
        return entry

    @classmethod
    def from_dict(cls, entry: Arguments) -> InterventionConfig:
        """Read the output of `to_dict`.

        Raises:
            ValueError: If a field is unknown or missing, or its value is not of its type.
        """
        for name, value in entry.items():
            if name not in _JSON_TYPES:
                raise ValueError(
                    f"unknown field {name!r} of an intervention; known: {', '.join(_JSON_TYPES)}."
                )
            if not isinstance(value, _JSON_TYPES[name]) or isinstance(value, bool):
                raise ValueError(f"the field {name!r} of an intervention cannot be {value!r}.")
        if missing := {"component", "kind", "arguments"} - set(entry):
            raise ValueError(f"an intervention lacks the field {', '.join(sorted(missing))}.")
        if "device" in (entry["arguments"] or {}):
            raise ValueError("an adapter cannot choose the device of an intervention.")
        values = dict(entry)
        if values.get("heads") is not None:
            values["heads"] = read_heads(values["heads"])
        return cls(**values)


def is_path(component: object) -> bool:
    """Whether a component is a path to a module, rather than a name.

    Raises:
        TypeError: If it is not a string.
    """
    if not isinstance(component, str):
        raise TypeError(f"a component is named by a string, got {component!r}.")
    return "." in component or "[" in component


def intervention_keys(configs: Sequence[InterventionConfig]) -> list[str]:
    """The keys in `ReftModel.interventions` and in files, which are upstream's.

    Each has the component and the layer, and a count if several interventions share them.
    """
    seen: dict[str, int] = {}
    keys = []
    for config in configs:
        name = config.component.replace(".", "_")
        place = f"comp_{name}" if is_path(config.component) else f"layer_{config.layer}_comp_{name}"
        place += "_unit_pos_nunit_1"
        keys.append(f"{place}#{seen.setdefault(place, 0)}")
        seen[place] += 1
    return keys


def require_disjoint(resolved: Sequence[InterventionConfig], sites: Sequence[Hashable]) -> None:
    """Refuse positions that overlap on one layer (Wu et al. 2024, section 3).

    Args:
        resolved: The interventions.
        sites: The site of each; interventions on the same hidden state have equal sites.

    Raises:
        ValueError: If two specs at one site have a token in common in every long prompt.
    """
    at: dict[Hashable, list[InterventionConfig]] = {}
    for one, site in zip(resolved, sites, strict=True):
        earlier = at.setdefault(site, [])
        for other in earlier:
            if share_no_head(one, other):
                continue
            if one.positions and other.positions and one.positions.overlaps(other.positions):
                raise ValueError(
                    f"two interventions edit one token: {one.place} at {other.positions!r} and at "
                    f"{one.positions!r}. Positions of interventions on one layer must be disjoint."
                )
        earlier.append(one)


def share_no_head(one: InterventionConfig, other: InterventionConfig) -> bool:
    """Whether two interventions at one site edit different heads, and so never overlap."""
    return not (one.heads is None or other.heads is None or set(one.heads) & set(other.heads))


def _describe(intervention: nn.Module, arguments: Arguments) -> tuple[str, Json | None]:
    """The kind and the constructor arguments of the user's module.

    Args:
        intervention: The module.
        arguments: The other keys of its representation, which must agree with the module.
    """
    kind = kind_of(intervention)
    rank = arguments.get("low_rank_dimension")
    has = getattr(intervention, "low_rank_dimension", rank)
    if rank is not None and rank != has:
        logger.warning(
            f"the representation has low_rank_dimension={rank}, its intervention has {has}: the "
            "rank of the intervention is used."
        )
    if unknown := set(arguments) - {"low_rank_dimension", "embed_dim"}:
        raise ValueError(
            f"unknown key {', '.join(sorted(unknown))} of a representation: its intervention is a "
            "module already, so its arguments belong into its constructor."
        )
    return kind, constructor_arguments(intervention)
