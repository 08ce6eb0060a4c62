"""adapter <-> directory: `reft_config.json` and `reft_model.safetensors`.

A checkpoint is data. Nothing in it names code, and nothing in it is run. The format is described
in docs/checkpoint_format.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
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

logger = logging.getLogger(__name__)

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
        tensors: Their parameters by name, "<key of the intervention>.<name in the module>", and
            trained tensors of the base model, "base_model.<name in the base model>".
        base: What is said of the base model: name_or_path, model_type, hidden_size,
            num_hidden_layers; num_decoder_layers, if it has an encoder and a decoder; trained_lora,
            if a LoRA of PEFT's was trained with the interventions.
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
    # Copies, since one tensor may be known by two names.
    tensors = {
        name: tensor.detach().clone().contiguous() for name, tensor in adapter.tensors.items()
    }
    entry = {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("pyreft", "torch", "transformers")},
        "base_model": adapter.base,
        **adapter.config.to_dict(),
    }
    content = json.dumps(entry).encode() + safetensors.torch.save(tensors)
    entry["fingerprint"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(entry, indent=2) + "\n"
    path = _writable(directory, allow_other_files)
    # The weights come first and hold the config as well: until its file follows, they are enough.
    _write(path / WEIGHTS_NAME, safetensors.torch.save(tensors, metadata={"reft_config": text}))
    _write(path / CONFIG_NAME, text.encode())


def read_adapter(directory: str | os.PathLike) -> Adapter:
    """Read an adapter. Nothing in it is run.

    Raises:
        AdapterError: If the directory is no adapter.
    """
    path = _existing(directory)
    try:
        with safetensors.safe_open(path / WEIGHTS_NAME, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise AdapterError(f"cannot read {path / WEIGHTS_NAME}: {error}") from error
    try:
        entry = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise ValueError("it is not a JSON object")
        if "fingerprint" in entry and "reft_config" in metadata:
            entry = _config_of_weights(entry, json.loads(metadata["reft_config"]), path)
        entry.pop("fingerprint", None)
        _check_version(entry.pop("format_version", None))
        entry.pop("library_versions", None)
        base = entry.pop("base_model", {})
        if not isinstance(base, dict):
            raise ValueError("the field 'base_model' must be an object")
        config = ReftConfig.from_dict(entry)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    return Adapter(config, tensors, base, os.fspath(directory))


def _config_of_weights(entry: dict, inside: Any, path: Path) -> dict[str, Any]:
    """The config that goes with the weights: the file's, unless that is another save's."""
    if not isinstance(inside, dict):
        raise ValueError("the config inside the weights is not a JSON object")
    if inside.get("fingerprint") == entry["fingerprint"]:
        return entry
    logger.warning(
        f"{path} holds the config of another save than its weights, which was cut short: the "
        "config inside the weights is used. Save the adapter again to mend it."
    )
    return inside


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


def _writable(directory: str | os.PathLike, allow_other_files: bool) -> Path:
    """The directory, made if it was not there."""
    if not os.fspath(directory):
        raise AdapterError("cannot save an adapter without the name of a directory.")
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise AdapterError(f"cannot save an adapter to {str(path)!r}: {error}") from error
    foreign = sorted(n for n in names if not _BESIDE.fullmatch(n) and n != WEIGHTS_NAME)
    if foreign and CONFIG_NAME not in names and not allow_other_files:
        raise AdapterError(
            f"will not save an adapter to {str(path)!r}: it holds {', '.join(foreign[:5])}. "
            "Choose a new directory, or pass allow_other_files=True."
        )
    return path


def _write(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
