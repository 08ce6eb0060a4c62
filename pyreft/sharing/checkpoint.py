"""adapter <-> directory: `reft_config.json` and `reft_model.safetensors`.

A checkpoint is data. Nothing in it names code, and nothing in it is run. The format is described
in docs/checkpoint_format.md.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyreft.config import ReftConfig

if TYPE_CHECKING:
    from pyreft.modeling.model import ReftModel

CONFIG_NAME = "reft_config.json"
WEIGHTS_NAME = "reft_model.safetensors"
FORMAT_VERSION = "1.0"

# What tokenizers, trainers and repositories put beside an adapter.
_BESIDE = re.compile(
    r"\.git.*|\.cache|README\.md|LICENSE.*|.*tokenizer.*|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\..*|merges\.txt|spiece\.model|chat_template.*|"
    r"generation_config\.json|training_args\.bin|trainer_state\.json|optimizer\..*|"
    r"scheduler\.pt|scaler\.pt|rng_state.*|checkpoint-\d+|runs|logs|.*\.png"
)


class AdapterError(ValueError):
    """A directory that cannot be read as an adapter, or must not be written as one."""


def save_adapter(model: ReftModel, directory: str | os.PathLike) -> None:
    """Write an adapter. Files appear whole or not at all; see `ReftModel.save_pretrained`."""
    config = _describe(model)
    tensors = {name: tensor.contiguous() for name, tensor in adapter_tensors(model).items()}
    path = Path(directory)
    _refuse_foreign(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    _write(path / WEIGHTS_NAME, weights)
    _write(path / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())


def read_adapter(
    directory: str | os.PathLike, model: nn.Module
) -> tuple[ReftConfig, dict[str, Tensor]]:
    """Read an adapter for a base model.

    Raises:
        AdapterError: If the directory is no adapter, or one for another model.
    """
    path = _existing(directory)
    try:
        entry = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise ValueError("it is not a JSON object")
        version = entry.pop("format_version", None)
        _check_version(version)
        base = entry.pop("base_model", {})
        entry.pop("library_versions", None)
        config = ReftConfig.from_dict(entry)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    _check_base(base, model, path)
    try:
        tensors = safetensors.torch.load_file(path / WEIGHTS_NAME)
    except (safetensors.SafetensorError, OSError) as error:
        raise AdapterError(f"cannot read {path / WEIGHTS_NAME}: {error}") from error
    return config, tensors


def adapter_tensors(model: ReftModel) -> dict[str, Tensor]:
    """Every tensor of an adapter by name; those of tied interventions once."""
    configs = model.reft_config.representations
    return {
        f"{key}.{name}": tensor
        for config, (key, module) in zip(configs, model.interventions.items(), strict=True)
        if config.tied_to is None
        for name, tensor in module.state_dict().items()
    }


def load_tensors(
    model: ReftModel, tensors: Mapping[str, Tensor], directory: str | os.PathLike
) -> None:
    """Copy saved tensors into an adapter, all of them or none.

    Raises:
        AdapterError: If a name or a shape differs; the model is left as it was.
    """
    mine = adapter_tensors(model)
    if wrong := sorted(set(mine) ^ set(tensors)):
        state = "lacks" if wrong[0] in mine else "has unknown"
        raise AdapterError(
            f"{directory} {state} {wrong[0]}: it was saved from an adapter of another config."
        )
    for name, tensor in mine.items():
        if tensor.shape != tensors[name].shape:
            raise AdapterError(
                f"{name} in {directory} has shape {tuple(tensors[name].shape)}, this adapter's has "
                f"{tuple(tensor.shape)}."
            )
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


def _describe(model: ReftModel) -> dict[str, Any]:
    from importlib.metadata import version

    from pyreft.modeling.components import text_config

    sizes = text_config(model.model)
    return {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("pyreft", "torch", "transformers")},
        "base_model": {
            "name_or_path": model.config.name_or_path or None,
            "model_type": sizes.model_type,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.num_hidden_layers,
        },
        **model.reft_config.to_dict(),
    }


def _check_version(version: object) -> None:
    major = FORMAT_VERSION.split(".")[0]
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+", version):
        raise ValueError(f"its format_version is {version!r}, which is no version")
    if version.split(".")[0] != major:
        raise ValueError(
            f"its format is {version}, this pyreft reads {major}.x: install a pyreft that reads it"
        )


def _check_base(base: object, model: nn.Module, path: Path) -> None:
    from pyreft.modeling.components import text_config

    sizes = text_config(model)
    for name in ("model_type", "hidden_size", "num_hidden_layers"):
        said = base.get(name) if isinstance(base, Mapping) else None
        if said is not None and said != getattr(sizes, name):
            trained_on = base.get("name_or_path") or "another model"
            raise AdapterError(
                f"{path} is an adapter for {trained_on}: its base model has {name} {said!r}, this "
                f"one has {getattr(sizes, name)!r}."
            )


def _existing(directory: str | os.PathLike) -> Path:
    path = Path(directory)
    if not path.exists():
        raise AdapterError(f"there is no directory {os.fspath(directory)!r} to load an adapter from.")
    if not (path / CONFIG_NAME).is_file() or not (path / WEIGHTS_NAME).is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        raise AdapterError(
            f"{os.fspath(directory)!r} is no adapter: it needs {CONFIG_NAME} and {WEIGHTS_NAME}; "
            f"there is {found or 'nothing'}."
        )
    return path


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise AdapterError(f"cannot save to {str(path)!r}: it is a file.")
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(n for n in names if not _BESIDE.fullmatch(n) and n != WEIGHTS_NAME)
    if foreign and CONFIG_NAME not in names:
        raise AdapterError(
            f"will not save an adapter to {str(path)!r}: it holds {', '.join(foreign[:5])}. "
            "Choose a new directory."
        )


def _write(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
