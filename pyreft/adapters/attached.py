"""One adapter on a base model: its interventions, their targets, and the heads it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from pyreft.adapters.build import build_interventions
from pyreft.base_model.components import Component, find_component
from pyreft.base_model.running import execution_device
from pyreft.base_model.structure import Structure
from pyreft.base_model.trained import TrainedModules
from pyreft.config import ReftConfig, intervention_keys
from pyreft.config.groups import name_layers
from pyreft.config.picture import draw
from pyreft.config.shown import edits_html
from pyreft.placement.targets import Target, require_positions
from pyreft.positions import PositionSpec
from pyreft.sharing.training_facts import TrainingFacts


class InterventionDict(nn.ModuleDict):
    """Interventions by key; also accepts keys of older pyvene releases, which have dots."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(key.replace(".", "_"))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.replace(".", "_"))


class AttachedAdapter(nn.Module):
    """An adapter, built from a config for one base model.

    Args:
        config: The interventions to train and where they edit.
        base: The base model.
        add_sites: Hooks components, and returns the site number of each.

    Attributes:
        config: The config, with one entry for every intervention.
        interventions: The modules by key.
        trained: The parts of the base model that are trained as well.
        targets: Where each intervention edits.
        left_to_batch: Indices of the interventions whose positions the config leaves to the batch.
        training_facts: What a trainer records of its training, until other weights are loaded.

    Raises:
        ValueError: If a layer or component does not exist, or an intervention does not fit it.
    """

    def __init__(
        self,
        config: ReftConfig,
        base: PreTrainedModel,
        add_sites: Callable[[Sequence[Component]], list[int]],
    ) -> None:
        super().__init__()
        structure = Structure(base)
        self._layers = structure.count_layers() if config.names_layers else []
        resolved = config.resolve(*(self._layers or [0]))
        components = [find_component(structure, c.layer, c.component) for c in resolved]
        resolved = build_interventions(resolved, components, base)
        self.trained = TrainedModules(base, config.modules_to_save or ())
        self.config = ReftConfig(
            representations=resolved, modules_to_save=self.trained.names or None
        )
        modules = [c.intervention for c in resolved if c.intervention is not None]
        self.interventions = InterventionDict(
            dict(zip(intervention_keys(resolved), modules, strict=True))
        )
        self.left_to_batch = frozenset(i for i, c in enumerate(resolved) if c.positions is None)
        self.training_facts: TrainingFacts | None = None
        self._trainable = [p for p in self.interventions.parameters() if p.requires_grad]
        joined = zip(self.config.representations, components, add_sites(components), strict=True)
        self.targets = [Target(*one) for one in joined]
        require_positions(self.targets)

    def __repr__(self) -> str:
        return "\n".join(["AttachedAdapter(", *self.describe(), ")"])

    def _repr_html_(self) -> str:
        return edits_html(self.config, *self._layers)

    def picture(self) -> str:
        """What it edits, drawn as text: layers from left to right, the text downwards."""
        return draw(self.config.representations, *self._layers)

    def describe(self) -> list[str]:
        """Readable lines: one for each group of equal interventions, one for trained heads."""
        alike: dict[str, list[int | None]] = {}
        for config, module in zip(
            self.config.representations, self.interventions.values(), strict=True
        ):
            at = "the batch's positions" if config.positions is None else repr(config.positions)
            heads = "" if config.heads is None else f", heads {', '.join(map(str, config.heads))}"
            shown = f"{type(module).__name__}({module.extra_repr()}) at {at}"
            alike.setdefault(f"{config.component}{heads}: {shown}", []).append(config.layer)
        lines = [f"  {_name_layers(layers)}{shown}" for shown, layers in alike.items()]
        if self.trained.names:
            lines.append(f"  trained with the base model: {self.trained.extra_repr()}")
        return lines

    def record_positions(self, positions: Sequence[PositionSpec]) -> None:
        """Give positions to the interventions, see `ReftModel.record_positions`."""
        configs = self.config.representations
        if len(positions) not in (1, len(configs)):
            raise ValueError(
                f"positions for {len(positions)} interventions, the model has {len(configs)}. With "
                "f+l positions and weights that are not shared there are two interventions for "
                "each layer: the first half is at f, the second at l."
            )
        given = [*positions] * len(configs) if len(positions) == 1 else positions
        for index, (config, spec) in enumerate(zip(configs, given, strict=True)):
            if index not in self.left_to_batch and config.positions != spec:
                raise ValueError(
                    f"the config puts intervention {index} at {config.positions!r}, the data "
                    f"module at {spec!r}: make both the same, or leave positions out of the config."
                )
        targets = [one.at(spec) for one, spec in zip(self.targets, given, strict=True)]
        require_positions(targets)
        self.targets = targets
        self.config = replace(self.config, representations=[one.config for one in targets])

    def move_to_components(self) -> None:
        """Move every intervention to the device of the part of the base model that it edits."""
        for module, target in zip(self.interventions.values(), self.targets, strict=True):
            here = next(module.parameters(), torch.empty(0)).device
            module.to(execution_device(target.component.module, here))

    def put_on(self) -> None:
        """Become active: put the trained heads in, and make the interventions trainable again."""
        self.trained.put_on()
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def take_off(self) -> None:
        """Become inactive: put the original heads back, and freeze everything."""
        self._trainable = [p for p in self.interventions.parameters() if p.requires_grad]
        self.interventions.requires_grad_(False)
        self.trained.take_off()


def _name_layers(layers: Sequence[int | None]) -> str:
    """Such as "layers 0-3, 7 "; empty for paths, which include the layer."""
    indices = {layer for layer in layers if layer is not None}
    return f"layer{'s' if len(indices) > 1 else ''} {name_layers(indices)} " if indices else ""
