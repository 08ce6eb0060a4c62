"""Directories of adapter-hub's `adapters` -> adapters: its LoReFT, NoReFT and DiReFT.

adapters 1.3.0 writes `adapter_config.json`, and `pytorch_adapter.bin` or `adapter.safetensors`. It
edits the output of a layer with units, which are sets of weights: one unit for the first and last
tokens together, or one for the first and one for the last. Deviation: it counts the last tokens
from the end of the whole sequence, pyreft from the end of the prompt.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from pyreft.annotations import Json
from pyreft.compat.torch_files import read_torch_file
from pyreft.config import InterventionConfig, ReftConfig, intervention_keys
from pyreft.interventions.parametrized import is_orthonormal, read_parametrized
from pyreft.interventions.shapes import require_tensors
from pyreft.positions import PositionSpec
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.entry import parse_json
from pyreft.sharing.reading import inside

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME, PICKLE_NAME = "adapter.safetensors", "pytorch_adapter.bin"
# The files to download from a repository.
FILE_PATTERNS = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME)

logger = logging.getLogger(__name__)

# A parameter of a unit: prefix, layer, unit, name in the unit.
_NAME = re.compile(r"(.*?)(\d+)\.reft_layer\.refts\.[^.]+\.units\.([01])\.(.+)")
_KINDS = {
    (True, True): "loreft",
    (True, False): "direft",
    (False, True): "noreft",
    (False, False): "nodireft",
}
# That library's names of activations that differ from those of transformers.
_ACTIVATIONS = {"leakyrelu": "leaky_relu", "linear": None}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "prefix_positions": int,
    "suffix_positions": int,
    "r": int,
    "orthogonality": bool,
    "tied_weights": bool,
    "dropout": (int, float),
    "non_linearity": (str, type(None)),
}


def is_adapter_hub(directory: str | os.PathLike[str]) -> bool:
    """Whether adapter-hub's library wrote a directory."""
    path = Path(directory)
    weights = (path / WEIGHTS_NAME, path / PICKLE_NAME)
    return (path / CONFIG_NAME).is_file() and any(file.is_file() for file in weights)


def read_adapter_hub(
    directory: str | os.PathLike[str], subtract_projection: bool | None = None
) -> Adapter:
    """Read an adapter that adapter-hub's library saved. No code in it is run.

    Args:
        directory: Where its `save_adapter` wrote. Saved heads are not read.
        subtract_projection: Whether the projection of the hidden state is subtracted, as in LoReFT
            and NoReFT, or not, as in DiReFT. The files do not record it. By default they are read
            as that library reads them, with subtraction, and a warning is logged.

    Raises:
        AdapterError: If the directory is not that library's, or contains another method.
    """
    path = Path(directory)
    try:
        entry = parse_json(inside(path, CONFIG_NAME).read_bytes())
        config = _read_config(entry)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    if subtract_projection is None and not config["orthogonality"]:
        logger.warning(
            f"the files in {path} do not record whether they are a NoReFT or a DiReFT: they are "
            "read as a NoReFT, as adapters reads them. If it was trained as a DiReFT, its outputs "
            "are wrong until you call read_adapter_hub(directory, subtract_projection=False)."
        )
    kind = _KINDS[config["orthogonality"], subtract_projection is not False]
    configs: list[InterventionConfig] = []
    tensors: list[dict[str, Tensor]] = []
    try:
        for (layer, unit), saved in _read_units(path).items():
            if positions := _positions(config, unit):
                arguments, own = _read_unit(kind, config, saved)
                configs.append(
                    InterventionConfig(layer, "block_output", positions, kind, arguments)
                )
                tensors.append(own)
        if not configs:
            raise ValueError("no unit of ReFT edits a token")
    except ValueError as error:
        raise AdapterError(f"cannot read the weights in {path}: {error}") from error
    named = {
        f"{key}.{name}": tensor
        for key, own in zip(intervention_keys(configs), tensors, strict=True)
        for name, tensor in own.items()
    }
    base = {"name_or_path": entry.get("model_name") or None}
    base |= {name: entry[name] for name in ("model_type", "hidden_size") if name in entry}
    return Adapter(ReftConfig(representations=configs), named, base, os.fspath(directory))


def _read_config(entry: Json) -> Json:
    config = entry.get("config")
    if not isinstance(config, dict):
        raise ValueError("it has no object under 'config'")
    if (method := config.get("architecture")) != "reft":
        raise ValueError(f"its method is {method!r}, and only 'reft' is read here")
    for name, types in _TYPES.items():
        if name not in config or not isinstance(config[name], types):
            raise ValueError(f"the field {name!r} of its config cannot be {config.get(name)!r}")
    for name in ("prefix_positions", "suffix_positions"):
        if isinstance(config[name], bool) or config[name] < 0:
            raise ValueError(f"the field {name!r} of its config cannot be {config[name]!r}")
    return config


def _read_units(path: Path) -> dict[tuple[int, int], dict[str, Tensor]]:
    """The parameters of each unit, by (layer, unit)."""
    if (path / WEIGHTS_NAME).is_file():
        try:
            saved = safetensors.torch.load_file(inside(path, WEIGHTS_NAME))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(str(error)) from error
    else:
        saved = read_torch_file(inside(path, PICKLE_NAME))
    units: dict[tuple[int, int], dict[str, Tensor]] = {}
    stacks = set()
    for name, tensor in saved.items():
        if not (match := _NAME.fullmatch(name)):
            raise ValueError(f"the tensor {name} belongs to no unit of ReFT")
        stack, layer, unit, parameter = match.groups()
        stacks.add(stack)
        units.setdefault((int(layer), int(unit)), {})[parameter] = tensor
    if len(stacks) > 1:
        raise ValueError(f"it has several lists of layers, {', '.join(sorted(stacks))}")
    return dict(sorted(units.items()))


def _positions(config: Json, unit: int) -> PositionSpec | None:
    """The positions that a unit edits, None if there are none."""
    first, last = config["prefix_positions"], config["suffix_positions"]
    if not config["tied_weights"]:
        first, last = (0, last) if unit else (first, 0)
    parts = [f"f{first}"] * bool(first) + [f"l{last}"] * bool(last)
    return PositionSpec.parse("+".join(parts)) if parts else None


def _read_unit(
    kind: str, config: Json, saved: Mapping[str, Tensor]
) -> tuple[Json, dict[str, Tensor]]:
    """The arguments of a unit's intervention, and its tensors by our names."""
    tensors = dict(saved)
    if config["orthogonality"]:
        rows = read_parametrized(saved, "projection.")
        tensors = {n: t for n, t in tensors.items() if not n.startswith("projection.")}
        tensors["rotate_layer.original"] = rows.mT.contiguous()
        if not is_orthonormal(rows.mT):
            raise ValueError("the rows of a projection are not orthonormal")
    elif "projection.weight" in tensors:
        tensors["proj_layer.weight"] = tensors.pop("projection.weight")
    width, rank = require_tensors(kind, tensors)
    if rank != config["r"]:
        raise ValueError(f"its rank is {rank}, {CONFIG_NAME} says {config['r']}")
    activation = (config["non_linearity"] or "linear").lower()
    arguments = {
        "embed_dim": width,
        "low_rank_dimension": rank,
        "dropout": float(config["dropout"]),
        "act_fn": _ACTIVATIONS.get(activation, activation),
        "dtype": str(tensors["learned_source.weight"].dtype).removeprefix("torch."),
        "add_bias": False,
    }
    return arguments, tensors
