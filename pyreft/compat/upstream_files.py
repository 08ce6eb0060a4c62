"""Upstream's directories <-> adapters: `config.json` and an `intkey_*.bin` for each intervention.

What stanfordnlp/pyreft 0.1.0 on pyvene 0.1.8 writes and reads. Class names in these files are
looked up in a table here, and never imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyreft.annotations import Json
from pyreft.compat.torch_files import read_torch_file, write_torch_file
from pyreft.config import InterventionConfig, ReftConfig, intervention_keys
from pyreft.config.intervention import is_path
from pyreft.interventions.shapes import CONSTANT, KINDS
from pyreft.interventions.upstream_tensors import read_intervention, write_intervention
from pyreft.positions import PositionSpec
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import OF_BASE
from pyreft.sharing.entry import parse_json
from pyreft.sharing.reading import inside
from pyreft.sharing.whole import new_directory

CONFIG_NAME = "config.json"
MODEL_NAME = "pytorch_model.bin"
# What to download of a repository.
FILE_PATTERNS = (CONFIG_NAME, "intkey_*.bin", MODEL_NAME)

logger = logging.getLogger(__name__)

_CLASS = "<class 'pyreft.interventions.{}Intervention'>"
_KINDS = {_CLASS.format(kind.capitalize()): kind for kind in KINDS}
# The fields of a representation in their order, as pyvene writes it.
_FIELDS = (
    *("layer", "component", "unit", "max_number_of_units", "low_rank_dimension"),
    *("intervention_type", "intervention", "subspace_partition", "group_key"),
    *("intervention_link_key", "moe_key", "source_representation"),
    *("hidden_source_representation", "latent_dim"),
)
_COMPONENTS = (
    *("block_input", "block_output", "mlp_input", "mlp_activation", "mlp_output"),
    *("attention_input", "attention_value_output", "attention_output"),
)
_UNSAID = ("act_fn", "dropout")


def is_upstream(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is one that upstream wrote."""
    path = Path(directory)
    return (path / CONFIG_NAME).is_file() and any(path.glob("intkey_*.bin"))


def read_upstream(
    directory: str | os.PathLike[str],
    positions: Any = None,
    arguments: Json | None = None,
) -> Adapter:
    """Read an adapter that upstream saved. Nothing in it is run.

    Args:
        directory: Where upstream's `save` wrote.
        positions: Where the interventions act, which upstream does not save: a position spec for
            all, or a list of one for each. Without it, every batch must say so.
        arguments: `act_fn` and `dropout`, which upstream does not save either, of all
            interventions. Without them there is no activation and no dropout, and a warning in
            the log says so.

    Raises:
        AdapterError: If the directory is not upstream's, or holds what ReFT has no use for.
        ValueError: If `positions` or `arguments` do not fit.
    """
    path = Path(directory)
    given = dict(arguments or {})
    if unknown := sorted(set(given) - set(_UNSAID)):
        raise ValueError(f"upstream's files say {unknown[0]}: arguments are act_fn and dropout.")
    try:
        places = _read_places(parse_json(inside(path, CONFIG_NAME).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    specs = _one_for_each(positions, len(places))
    configs: list[InterventionConfig] = []
    tensors: dict[str, Tensor] = {}
    for place, spec, key in zip(places, specs, intervention_keys(places), strict=True):
        found, own = _read_intervention(inside(path, f"intkey_{key}.bin"), place, given)
        configs.append(replace(found, positions=spec))
        tensors |= {f"{key}.{name}": tensor for name, tensor in own.items()}
    has_trained = (path / MODEL_NAME).exists()
    trained = read_torch_file(inside(path, MODEL_NAME)) if has_trained else {}
    tensors |= {f"{OF_BASE}{name}": tensor for name, tensor in trained.items()}
    _say_what_is_unknown(path, configs, given)
    config = ReftConfig(representations=configs, modules_to_save=list(trained) or None)
    return Adapter(config, tensors, {}, os.fspath(directory))


def _read_places(entry: Json) -> list[InterventionConfig]:
    """Kind and place of each intervention."""
    rows, types = (entry.get(name) for name in ("representations", "intervention_types"))
    if not isinstance(rows, list) or not isinstance(types, list) or not rows:
        raise ValueError("it has no lists of representations and intervention_types")
    if len(rows) != len(types):
        raise ValueError(f"it has {len(rows)} representations and {len(types)} intervention_types")
    places = []
    for row, name in zip(rows, types, strict=True):
        if not isinstance(name, str) or name not in _KINDS:
            raise ValueError(
                f"its intervention type {name!r} is none of the six of pyreft: one of your own is "
                "registered with pyreft.register_intervention and saved by this pyreft"
            )
        if not isinstance(row, list) or len(row) > len(_FIELDS):
            raise ValueError(f"its representation {row!r} is not a list of {', '.join(_FIELDS)}")
        place = InterventionConfig.from_representation(
            dict(zip(_FIELDS, row, strict=False)), _KINDS[name]
        )
        _require_plain(place)
        places.append(place)
    return places


def _read_intervention(
    file: Path, place: InterventionConfig, given: Json
) -> tuple[InterventionConfig, dict[str, Tensor]]:
    saved = read_torch_file(file)
    try:
        kind, arguments, tensors = read_intervention(str(place.kind), saved)
        if place.low_rank_dimension not in (None, rank := arguments["low_rank_dimension"]):
            raise ValueError(f"its rank is {rank}, {CONFIG_NAME} says {place.low_rank_dimension}")
    except ValueError as error:
        raise AdapterError(f"cannot read {file}: {error}") from error
    if kind != place.kind:
        logger.warning(f"the directions in {file} are not orthonormal: it is read as {kind}.")
    arguments["dropout"] = given.get("dropout", 0.0)
    arguments["act_fn"] = None if kind in CONSTANT else given.get("act_fn")
    return replace(place, kind=kind, arguments=arguments), tensors


def _require_plain(place: InterventionConfig) -> None:
    """Refuse what could not have been saved, since names of files are made of it."""
    if not re.fullmatch(r"[\w.\[\]]+", place.component):
        raise ValueError(f"its component {place.component!r} names no part of a model")
    if place.layer is not None and (type(place.layer) is not int or place.layer < 0):
        raise ValueError(f"its layer {place.layer!r} is no index")


def _one_for_each(positions: Any, count: int) -> list[PositionSpec | None]:
    if positions is None:
        return [None] * count
    several = isinstance(positions, (list, tuple)) and any(isinstance(p, str) for p in positions)
    specs = [PositionSpec.parse(spec) for spec in (positions if several else [positions] * count)]
    if len(specs) != count:
        raise ValueError(f"positions for {len(specs)} interventions; there are {count}.")
    return list(specs)


def _say_what_is_unknown(path: Path, configs: Sequence[InterventionConfig], given: Json) -> None:
    if "act_fn" not in given and any(config.kind not in CONSTANT for config in configs):
        logger.warning(
            f"upstream's files do not say act_fn and dropout: the adapter in {path} is read as one "
            "without. If it was trained with an activation, its numbers are others until you say "
            'so, as in read_upstream(directory, arguments={"act_fn": "relu"}).'
        )
    if any(config.positions is None for config in configs):
        logger.warning(
            f"upstream's files do not say positions: for the adapter in {path}, every batch must "
            "(unit_locations), or record_positions."
        )


def write_upstream(adapter: Adapter, directory: str | os.PathLike[str]) -> None:
    """Write an adapter as upstream saves it; the directory appears whole or not at all.

    What upstream's files do not say is told in the log: positions, activation, dropout. What its
    `load` makes of them is in docs/interoperability.md.

    Args:
        adapter: What `read_adapter` returns.
        directory: A new or empty directory.

    Raises:
        AdapterError: If upstream has no such intervention, or the directory is there already.
    """
    if adapter.lora is not None:
        raise AdapterError(f"{adapter.origin} has PEFT's LoRA: upstream has no file for it.")
    configs: list[InterventionConfig] = adapter.config.representations or []
    given = [config.arguments or {} for config in configs]
    if not configs or any("embed_dim" not in arguments for arguments in given):
        raise AdapterError(
            f"the config of {adapter.origin} does not spell out its interventions: load it on its "
            "base model and save it from there."
        )
    for config in configs:
        _require_upstream(config)
    with new_directory(directory) as path:
        keys = intervention_keys(configs)
        for config, arguments, key in zip(configs, given, keys, strict=True):
            own = _named(adapter.tensors, f"{key}.")
            saved = write_intervention(config.kind, arguments, own)
            write_torch_file(path / f"intkey_{key}.bin", saved)
        if trained := _named(adapter.tensors, OF_BASE):
            write_torch_file(path / MODEL_NAME, trained)
        text = json.dumps(_entry(configs), indent=2, sort_keys=True) + "\n"
        (path / CONFIG_NAME).write_text(text, encoding="utf-8")
    positions = ", ".join(repr(config.positions) for config in configs)
    unsaid = {name: [arguments.get(name) for arguments in given] for name in _UNSAID}
    logger.warning(
        f"upstream's files do not say what its scripts must: the unit_locations of {positions}; "
        f"{', '.join(f'{name} {values}' for name, values in unsaid.items())}."
    )


def _require_upstream(config: InterventionConfig) -> None:
    if config.kind not in _KINDS.values():
        raise AdapterError(f"upstream has no intervention of the kind {config.kind!r}.")
    if config.tied_to is not None:
        raise AdapterError(f"the intervention at {config.place} is tied: upstream cannot say so.")
    if not is_path(config.component) and config.component not in _COMPONENTS:
        raise AdapterError(
            f"upstream has no component {config.component!r}, only {', '.join(_COMPONENTS)}, and "
            "paths."
        )


def _entry(configs: Sequence[InterventionConfig]) -> Json:
    """The content of config.json."""
    classes = {kind: name for name, kind in _KINDS.items()}
    rows = [
        {
            "layer": config.layer or 0,
            "component": config.component,
            "unit": "pos",
            "max_number_of_units": 1,
            "low_rank_dimension": config.low_rank_dimension,
        }
        for config in configs
    ]
    return {
        "intervention_constant_sources": [True] * len(configs),
        "intervention_dimensions": [(config.arguments or {})["embed_dim"] for config in configs],
        "intervention_types": [classes[config.kind] for config in configs],
        "mode": "parallel",
        "representations": [[row.get(name) for name in _FIELDS] for row in rows],
        "sorted_keys": intervention_keys(configs),
    }


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
