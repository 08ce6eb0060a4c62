"""adapter <-> directory: `reft_config.json` and `reft_model.safetensors`.

A checkpoint is data. Nothing in it names code, and nothing in it is run. The format is described
in docs/checkpoint_format.md.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from pyreft.config import ReftConfig

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


@dataclass(frozen=True)
class Adapter:
    """What a checkpoint holds.

    Args:
        config: The interventions.
        tensors: Their parameters by name, "<key of the intervention>.<name in the module>".
        base: What is said of the base model: name_or_path, model_type, hidden_size,
            num_hidden_layers.
        origin: Where it was read from.
    """

    config: ReftConfig
    tensors: dict[str, Tensor]
    base: dict[str, Any]
    origin: str = ""


def save_adapter(
    directory: str | os.PathLike, adapter: Adapter, allow_other_files: bool = False
) -> None:
    """Write an adapter; each file appears whole or not at all. See `ReftModel.save_pretrained`."""
    entry = {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("pyreft", "torch", "transformers")},
        "base_model": adapter.base,
        **adapter.config.to_dict(),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter.tensors.items()}
    path = Path(directory)
    _refuse_foreign(path, allow_other_files)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / WEIGHTS_NAME, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    _write(path / CONFIG_NAME, (json.dumps(entry, indent=2) + "\n").encode())


def read_adapter(directory: str | os.PathLike) -> Adapter:
    """Read an adapter. Nothing in it is run.

    Raises:
        AdapterError: If the directory is no adapter.
    """
    path = _existing(directory)
    try:
        entry = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise ValueError("it is not a JSON object")
        _check_version(entry.pop("format_version", None))
        entry.pop("library_versions", None)
        base = entry.pop("base_model", {})
        if not isinstance(base, dict):
            raise ValueError("the field 'base_model' must be an object")
        config = ReftConfig.from_dict(entry)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    try:
        tensors = safetensors.torch.load_file(path / WEIGHTS_NAME)
    except (safetensors.SafetensorError, OSError) as error:
        raise AdapterError(f"cannot read {path / WEIGHTS_NAME}: {error}") from error
    return Adapter(config, tensors, base, os.fspath(directory))


def _check_version(found: object) -> None:
    major = FORMAT_VERSION.split(".")[0]
    if not isinstance(found, str) or not re.fullmatch(r"\d+\.\d+", found):
        raise ValueError(f"its format_version is {found!r}, which is no version")
    if found.split(".")[0] != major:
        raise ValueError(
            f"its format is {found}, this pyreft reads {major}.x: install a pyreft that reads it"
        )


def _existing(directory: str | os.PathLike) -> Path:
    path = Path(directory)
    if not path.exists():
        raise AdapterError(
            f"there is no directory {os.fspath(directory)!r} to load an adapter from."
        )
    if not (path / CONFIG_NAME).is_file() or not (path / WEIGHTS_NAME).is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        raise AdapterError(
            f"{os.fspath(directory)!r} is no adapter: it needs {CONFIG_NAME} and {WEIGHTS_NAME}; "
            f"there is {found or 'nothing'}."
        )
    return path


def _refuse_foreign(path: Path, allow_other_files: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise AdapterError(f"cannot save to {str(path)!r}: it is a file.")
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(n for n in names if not _BESIDE.fullmatch(n) and n != WEIGHTS_NAME)
    if foreign and CONFIG_NAME not in names and not allow_other_files:
        raise AdapterError(
            f"will not save an adapter to {str(path)!r}: it holds {', '.join(foreign[:5])}. "
            "Choose a new directory, or pass allow_other_files=True."
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
