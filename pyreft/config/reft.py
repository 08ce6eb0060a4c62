"""The config of an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyreft.annotations import Arguments, Json
from pyreft.config.fields import (
    SHORT_FORM_TYPES,
    check_types,
    read_heads,
    read_kind,
    read_names,
)
from pyreft.config.intervention import InterventionConfig, is_path, require_disjoint
from pyreft.config.layer_counts import LayerCounts
from pyreft.config.shown import config_html, config_text
from pyreft.interventions import accepted_arguments
from pyreft.positions import PositionSpec

# Fields that may be given together with representations.
_BESIDE = ("representations", "kind", "intervention_types", "modules_to_save")
# Fields that `arguments` replaces.
_ARGUMENTS = ("rank", "dropout", "act_fn", "add_bias", "dtype")


@dataclass(repr=False)
class ReftConfig:
    """Which interventions an adapter has.

    The defaults are the paper's set-up (Wu et al. 2024, section 4): LoReFT of rank 8 at every
    layer, at the first and last seven tokens of the prompt, with shared weights. Pass what
    differs:

        ReftConfig()                                        # all layers, f7+l7, rank 8, tied
        ReftConfig(layers=[15], positions="l1", rank=4)
        ReftConfig(kind="nodireft", tied=False, dropout=0.05)

    Upstream's form lists every intervention. If one has no positions, each batch must give them:

        ReftConfig(representations=[{"layer": 15, "component": "block_output",
                                     "low_rank_dimension": 4, "intervention": module}])

    Args:
        representations: Upstream's form: one dict or a list of them, see
            `InterventionConfig.from_representation`. Excludes all arguments below but `kind` and
            `modules_to_save`.
        layers: "all", an index, or indices; negative ones count from the last layer.
        component: Where in the layer; see `pyreft.base_model.components`.
        positions: A position spec; see `pyreft.positions.words`.
        kind: Name of the kind of intervention, or its class.
        rank: Dimension R of the subspace, 1 <= R <= D, the width of the component in features.
        tied: Whether one set of weights edits all positions of a layer. With False, each part of
            the position spec has weights of its own.
        heads: Indices of the heads to edit, from 0, of a per-head component; all by default.
        dropout: Probability of dropping an entry of the edit, in [0, 1).
        act_fn: Name of a transformers activation on the learned source, such as "relu".
        add_bias: Whether NoReFT's projection has a bias.
        dtype: Type of the parameters: float32, float64, bfloat16 or float16.
        arguments: Constructor arguments, in place of rank, dropout, act_fn, add_bias and dtype,
            for a kind of your own.
        modules_to_save: Modules of the base model that are trained beside the interventions and
            saved with them, such as the head of a classifier: names, or ends of names, as in
            PEFT. A single parameter may be named as well.
        intervention_types: Upstream's class for representations that name none.

    Raises:
        ValueError: If the arguments contradict each other, or a spec does not parse.
        TypeError: If an argument is of another type.
    """

    representations: Any = None
    layers: str | int | Sequence[int] = "all"
    component: str = "block_output"
    positions: Any = "f7+l7"
    kind: str | type[nn.Module] = "loreft"
    rank: int = 8
    tied: bool = True
    heads: Sequence[int] | None = None
    dropout: float = 0.0
    act_fn: str | None = None
    add_bias: bool = False
    dtype: str | torch.dtype = "float32"
    arguments: Json | None = None
    modules_to_save: Sequence[str] | None = None
    intervention_types: str | type[nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.modules_to_save is not None:
            self.modules_to_save = read_names(self.modules_to_save)
        if self.representations is not None:
            self.representations = self._read_representations()
            return
        if self.intervention_types is not None:
            raise ValueError("intervention_types is for representations; without, pass `kind`.")
        self.positions = PositionSpec.parse(self.positions)
        self.kind = read_kind(self.kind)
        self.dtype = str(self.dtype).removeprefix("torch.")
        if isinstance(self.layers, Integral) and not isinstance(self.layers, bool):
            self.layers = int(self.layers)
        if isinstance(self.layers, (tuple, range)):
            self.layers = list(self.layers)
        self.heads = None if self.heads is None else list(read_heads(self.heads) or ())
        check_types({name: getattr(self, name) for name in SHORT_FORM_TYPES})
        if is_path(self.component) and self.layers != "all":
            raise ValueError(
                f"the component {self.component!r} is a path, which contains the layer: leave out "
                "layers."
            )
        changed = [name for name in _ARGUMENTS if self._says(name)]
        if self.arguments is not None and changed:
            raise ValueError(f"{', '.join(changed)} goes into arguments, if those are given.")

    def __repr__(self) -> str:
        return config_text(self)

    def _repr_html_(self) -> str:
        return config_html(self)

    def _read_representations(self) -> list[InterventionConfig]:
        changed = [
            f.name
            for f in fields(self)
            if f.name not in _BESIDE and getattr(self, f.name) != f.default
        ]
        if changed:
            raise ValueError(
                f"representations have every field themselves: {', '.join(changed)} belongs into "
                "each of them."
            )
        given = self.representations
        given = [given] if isinstance(given, (Mapping, InterventionConfig)) else given
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise TypeError(f"representations must be a dict or a list of dicts, got {given!r}.")
        if not given:
            raise ValueError("representations is empty: there is nothing to train.")
        default = self.intervention_types or self.kind
        read: list[InterventionConfig] = []
        for index, one in enumerate(given):
            if not isinstance(one, (Mapping, InterventionConfig)):
                raise TypeError(f"representation {index} must be a dict, got {one!r}.")
            if isinstance(one, Mapping):
                one = InterventionConfig.from_representation(one, default)
            if one.intervention is not None:
                same = (i for i, r in enumerate(read) if r.intervention is one.intervention)
                if (tied_to := next(same, None)) != one.tied_to:
                    one = replace(one, tied_to=tied_to)
            read.append(one)
        return read

    @property
    def names_layers(self) -> bool:
        """Whether any intervention has a layer, rather than a path."""
        if self.representations is None:
            return not is_path(self.component)
        return any(r.layer is not None for r in self.representations)

    def resolve(
        self, num_layers: int, decoder_layers: int | None = None
    ) -> list[InterventionConfig]:
        """Every intervention, one by one, for a model with this number of layers.

        Args:
            num_layers: Number of layers; of a model with encoder and decoder, of its encoder.
            decoder_layers: Number of layers of its decoder; None for any other model.

        Returns:
            The interventions in the order of `intervention_locations`, without modules where the
            config has none.

        Raises:
            ValueError: If a layer is out of range, two interventions edit one token, or a
                component is of a decoder that is not there.
            TypeError: If a layer is no index.
        """
        counts = LayerCounts(num_layers, decoder_layers)
        if self.representations is not None:
            resolved = [_resolve_place(r, counts) for r in self.representations]
        else:
            arguments, heads = self._arguments(), read_heads(self.heads)
            resolved = [
                InterventionConfig(
                    layer=layer,
                    component=component,
                    positions=positions,
                    kind=str(self.kind),
                    arguments=dict(arguments),
                    heads=heads,
                )
                for positions in ([self.positions] if self.tied else self.positions.parts())
                for layer, component in self._places(counts)
            ]
        for index, one in enumerate(resolved):
            if one.tied_to is not None and not 0 <= one.tied_to < index:
                raise ValueError(
                    f"intervention {index} is tied to {one.tied_to}, which must come before it."
                )
        require_disjoint(resolved, [(one.layer, one.component) for one in resolved])
        return resolved

    def _places(self, counts: LayerCounts) -> list[tuple[int | None, str]]:
        """The layer and component of each intervention of the short form."""
        if is_path(self.component):
            return [(None, self.component)]
        component = counts.component(self.component)
        return [(layer, component) for layer in counts.read(self.layers, component)]

    def _arguments(self) -> Json:
        if self.arguments is not None:
            return dict(self.arguments)
        given = {
            "low_rank_dimension": self.rank,
            "dropout": self.dropout,
            "act_fn": self.act_fn,
            "add_bias": self.add_bias,
            "dtype": self.dtype,
        }
        # The user's own class may take none of them.
        taken = accepted_arguments(str(self.kind), given)
        fields = {"low_rank_dimension": "rank"}
        ignored = [n for n in (fields.get(n, n) for n in given if n not in taken) if self._says(n)]
        if ignored:
            raise ValueError(
                f"the kind {self.kind!r} takes no {', '.join(ignored)}: its constructor arguments "
                "go into arguments={...}."
            )
        return taken

    def _says(self, field: str) -> bool:
        """Whether a field has another value than its default."""
        return bool(getattr(self, field) != getattr(ReftConfig, field))

    def to_dict(self) -> Json:
        """JSON values: a list under "interventions", or the short form.

        Raises:
            ValueError: If a position function has no name.
        """
        if self.representations is not None:
            listed: Json = {"interventions": [r.to_dict() for r in self.representations]}
            return listed | ({"modules_to_save": n} if (n := self.modules_to_save) else {})
        entry = {name: getattr(self, name) for name in SHORT_FORM_TYPES}
        entry["positions"] = str(self.positions)
        return {name: value for name, value in entry.items() if value is not None}

    @classmethod
    def from_dict(cls, entry: Arguments) -> ReftConfig:
        """Read the output of `to_dict`.

        Raises:
            ValueError: If a field is unknown or its value does not fit.
        """
        if "interventions" not in entry:
            check_types(entry)
            return cls(**entry)
        if extra := set(entry) - {"interventions", "modules_to_save"}:
            raise ValueError(f"unknown field {', '.join(sorted(extra))} beside interventions.")
        listed = entry["interventions"]
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            raise ValueError("the field 'interventions' must be a list of objects.")
        return cls(
            representations=[InterventionConfig.from_dict(one) for one in listed],
            modules_to_save=entry.get("modules_to_save"),
        )

    def to_json_file(self, path: str | Path) -> None:
        """Write the config as JSON.

        Raises:
            ValueError: As for `to_dict`.
        """
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json_file(cls, path: str | Path) -> ReftConfig:
        """Read a config from JSON.

        Raises:
            ValueError: If the file is not JSON, or as for `from_dict`.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _resolve_place(one: InterventionConfig, counts: LayerCounts) -> InterventionConfig:
    if is_path(one.component):
        return one
    component = counts.component(one.component)
    layer = None if one.layer is None else counts.layer(one.layer, component)
    return replace(one, component=component, layer=layer)
