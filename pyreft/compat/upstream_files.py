"""Upstream's directories <-> adapters: `config.json` and an `intkey_*.bin` for each intervention.

The format of stanfordnlp/pyreft 0.1.0 with pyvene 0.1.8. Class names in these files are looked up
in a table here, and never imported.
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
from pyreft.interventions.shapes import KINDS, has_constant_source
from pyreft.interventions.upstream_tensors import read_intervention, write_intervention
from pyreft.positions import PositionSpec
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import OF_BASE
from pyreft.sharing.entry import parse_json
from pyreft.sharing.reading import inside
from pyreft.sharing.whole import new_directory

CONFIG_NAME = "config.json"
MODEL_NAME = "pytorch_model.bin"
# The files to download from a repository.
FILE_PATTERNS = (CONFIG_NAME, "intkey_*.bin", MODEL_NAME)

logger = logging.getLogger(__name__)

_CLASS = "<class 'pyreft.interventions.{}Intervention'>"
_KINDS = {_CLASS.format(kind.capitalize()): kind for kind in KINDS}
# The fields of a representation, in pyvene's order.
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
_NOT_SAVED = ("act_fn", "dropout")


def is_upstream(directory: str | os.PathLike[str]) -> bool:
    """Whether upstream wrote a directory."""
    path = Path(directory)
    return (path / CONFIG_NAME).is_file() and any(path.glob("intkey_*.bin"))


def read_upstream(
    directory: str | os.PathLike[str],
    positions: Any = None,
    arguments: Json | None = None,
) -> Adapter:
    """Read an adapter that upstream saved. No code in it is run.

    Args:
        directory: Where upstream's `save` wrote.
        positions: The positions of the interventions, which upstream does not save: one position
            spec for all, or a list with one for each. Without it, every batch must give them.
        arguments: `act_fn` and `dropout` of all interventions, which upstream does not save
            either. Without them there is no activation and no dropout, and a warning is logged.

    Raises:
        AdapterError: If the directory is not upstream's, or contains anything that ReFT lacks.
        ValueError: If `positions` or `arguments` do not fit.
    """
    path = Path(directory)
    given = dict(arguments or {})
    if unknown := sorted(set(given) - set(_NOT_SAVED)):
        raise ValueError(f"upstream's files record {unknown[0]}: arguments are act_fn and dropout.")
    try:
        entries = _read_entries(parse_json(inside(path, CONFIG_NAME).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    specs = _one_for_each(positions, len(entries))
    configs: list[InterventionConfig] = []
    tensors: dict[str, Tensor] = {}
    for entry, spec, key in zip(entries, specs, intervention_keys(entries), strict=True):
        found, own = _read_intervention(inside(path, f"intkey_{key}.bin"), entry, given)
        configs.append(replace(found, positions=spec))
        tensors |= {f"{key}.{name}": tensor for name, tensor in own.items()}
    has_trained = (path / MODEL_NAME).exists()
    trained = read_torch_file(inside(path, MODEL_NAME)) if has_trained else {}
    tensors |= {f"{OF_BASE}{name}": tensor for name, tensor in trained.items()}
    _warn_of_missing_fields(path, configs, given)
    config = ReftConfig(representations=configs, modules_to_save=list(trained) or None)
    return Adapter(config, tensors, {}, os.fspath(directory))


def _read_entries(entry: Json) -> list[InterventionConfig]:
    """Kind, layer and component of each intervention."""
    rows, types = (entry.get(name) for name in ("representations", "intervention_types"))
    if not isinstance(rows, list) or not isinstance(types, list) or not rows:
        raise ValueError("it has no lists of representations and intervention_types")
    if len(rows) != len(types):
        raise ValueError(f"it has {len(rows)} representations and {len(types)} intervention_types")
    entries = []
    for row, name in zip(rows, types, strict=True):
        if not isinstance(name, str) or name not in _KINDS:
            raise ValueError(
                f"its intervention type {name!r} is none of the six of pyreft: one of your own is "
                "registered with pyreft.register_intervention and saved by this pyreft"
            )
        if not isinstance(row, list) or len(row) > len(_FIELDS):
            raise ValueError(f"its representation {row!r} is not a list of {', '.join(_FIELDS)}")
        found = InterventionConfig.from_representation(
            dict(zip(_FIELDS, row, strict=False)), _KINDS[name]
        )
        _require_plain(found)
        entries.append(found)
    return entries


def _read_intervention(
    file: Path, entry: InterventionConfig, given: Json
) -> tuple[InterventionConfig, dict[str, Tensor]]:
    saved = read_torch_file(file)
    try:
        kind, arguments, tensors = read_intervention(str(entry.kind), saved)
        if entry.low_rank_dimension not in (None, rank := arguments["low_rank_dimension"]):
            raise ValueError(f"its rank is {rank}, {CONFIG_NAME} says {entry.low_rank_dimension}")
    except ValueError as error:
        raise AdapterError(f"cannot read {file}: {error}") from error
    if kind != entry.kind:
        logger.warning(f"the directions in {file} are not orthonormal: it is read as {kind}.")
    arguments["dropout"] = given.get("dropout", 0.0)
    arguments["act_fn"] = None if has_constant_source(kind) else given.get("act_fn")
    return replace(entry, kind=kind, arguments=arguments), tensors


def _require_plain(config: InterventionConfig) -> None:
    """Refuse values that upstream cannot have saved, because file names are built from them."""
    if not re.fullmatch(r"[\w.\[\]]+", config.component):
        raise ValueError(f"its component {config.component!r} names no part of a model")
    if config.layer is not None and (type(config.layer) is not int or config.layer < 0):
        raise ValueError(f"its layer {config.layer!r} is no index")


def _one_for_each(positions: Any, count: int) -> list[PositionSpec | None]:
    if positions is None:
        return [None] * count
    several = isinstance(positions, (list, tuple)) and any(isinstance(p, str) for p in positions)
    specs = [PositionSpec.parse(spec) for spec in (positions if several else [positions] * count)]
    if len(specs) != count:
        raise ValueError(f"positions for {len(specs)} interventions; there are {count}.")
    return list(specs)


def _warn_of_missing_fields(path: Path, configs: Sequence[InterventionConfig], given: Json) -> None:
    if "act_fn" not in given and not all(has_constant_source(c.kind) for c in configs):
        logger.warning(
            f"upstream's files do not record act_fn and dropout: the adapter in {path} is read "
            "without them. If it was trained with an activation, its outputs are wrong until you "
            'pass it: read_upstream(directory, arguments={"act_fn": "relu"}).'
        )
    if any(config.positions is None for config in configs):
        logger.warning(
            f"upstream's files do not record positions: for the adapter in {path}, give them with "
            "every batch (unit_locations), or with record_positions."
        )


def write_upstream(adapter: Adapter, directory: str | os.PathLike[str]) -> None:
    """Write an adapter as upstream saves it; the directory is written completely or not at all.

    Fields that upstream's files do not have are logged: positions, activation, dropout. See
    docs/interoperability.md for how upstream's `load` treats them.

    Args:
        adapter: The result of `read_adapter`.
        directory: A new or empty directory.

    Raises:
        AdapterError: If upstream has no such intervention, or the directory already exists.
    """
    if adapter.lora is not None:
        raise AdapterError(f"{adapter.origin} has PEFT's LoRA: upstream has no file for it.")
    configs: list[InterventionConfig] = adapter.config.representations or []
    given = [config.arguments or {} for config in configs]
    if not configs or any("embed_dim" not in arguments for arguments in given):
        raise AdapterError(
            f"the config of {adapter.origin} does not list the arguments of its interventions: "
            "load it on its base model and save it from there."
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
    missing = {name: [arguments.get(name) for arguments in given] for name in _NOT_SAVED}
    logger.warning(
        f"upstream's files do not record these, so its scripts must: unit_locations {positions}; "
        f"{', '.join(f'{name} {values}' for name, values in missing.items())}."
    )


def _require_upstream(config: InterventionConfig) -> None:
    if config.kind not in _KINDS.values():
        raise AdapterError(f"upstream has no intervention of the kind {config.kind!r}.")
    if config.tied_to is not None:
        raise AdapterError(f"the intervention at {config.place} is tied: upstream does not tie.")
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
    """The tensors whose names have this prefix, by the rest of their names."""
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
