"""directory -> adapter. Nothing in it is run, and no file outside it is read."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from torch import Tensor

from pyreft.annotations import Json
from pyreft.sharing.checkpoint import (
    CONFIG_NAME,
    MAX_CONFIG,
    WEIGHTS_NAME,
    Adapter,
    AdapterError,
)
from pyreft.sharing.entry import parse_json, read_entry

logger = logging.getLogger(__name__)

_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
_TYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}


class Formats(NamedTuple):
    """The formats of adapters that are read.

    Args:
        read: A directory -> the adapter in it; raises AdapterError.
        others: Patterns of the files of other libraries' adapters, which are downloaded from a
            repository that holds none of ours.
    """

    read: Callable[[str | os.PathLike[str]], Adapter]
    others: Sequence[str] = ()


def read_adapter(directory: str | os.PathLike[str]) -> Adapter:
    """Read an adapter. Nothing in it is run.

    The weights file contains the config as well. `reft_config.json` is used, with changes by hand,
    if it is of the same save as the weights.

    Raises:
        AdapterError: If the directory is not an adapter, or its files are damaged.
    """
    path = Path(directory)
    try:
        _require_files(os.fspath(directory))
        weights, config = inside(path, WEIGHTS_NAME), inside(path, CONFIG_NAME)
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        raise AdapterError(f"cannot read {os.fspath(directory)!r}: {error}") from error
    try:
        tensors, metadata = _read_weights(weights)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise AdapterError(f"cannot read {path / WEIGHTS_NAME}: {error}") from error
    try:
        entry = _choose(parse_json(_read_config(config)), metadata, path)
        said = read_entry(entry)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise AdapterError(f"cannot read {path / CONFIG_NAME}: {error}") from error
    return Adapter(said.config, tensors, said.base, os.fspath(directory), said.lora)


def is_of_format_1(directory: str | os.PathLike[str]) -> bool:
    """Whether an adapter in a directory, or in a folder of it, was saved in format 1."""
    entries = [parse_json(_read_config(path)) for path in Path(directory).rglob(CONFIG_NAME)]
    return any(str(entry.get("format_version")).startswith("1.") for entry in entries)


def fingerprint(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a config, and of the names and bytes of tensors, sorted by name."""
    found = hashlib.sha256(text.encode("utf-8"))
    for name in sorted(tensors):
        found.update(name.encode("utf-8"))
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _require_files(directory: str) -> None:
    """Raise AdapterError unless the directory has both files."""
    path = Path(directory)
    if "\0" in directory or not path.exists():
        raise AdapterError(f"there is no directory {directory!r} to load an adapter from.")
    if not (path / CONFIG_NAME).is_file() or not (path / WEIGHTS_NAME).is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        raise AdapterError(
            f"{directory!r} is no adapter: it needs {CONFIG_NAME} and {WEIGHTS_NAME}; "
            f"there is {found or 'nothing'}."
        )


def inside(directory: Path, name: str) -> Path:
    """The file of a name, with links resolved: all names in the Hub's cache are links.

    Raises:
        AdapterError: If it is outside the directory, or outside the repository's cache.
    """
    roots = [directory.resolve()]
    for snapshots in roots[0].parents:
        # The Hub's cache: models--user--name/snapshots/<revision>, its files in .../blobs, or in
        # the blobs of the whole cache, which repositories share.
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            roots = [snapshots.parent, snapshots.parent.parent / "blobs"]
            break
    found = (directory / name).resolve()
    if not any(found.is_relative_to(root) for root in roots):
        raise AdapterError(
            f"{directory / name} is a link to {found}, outside the adapter's directory: copy the "
            "file itself there."
        )
    return found


def _read_config(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_CONFIG + 1)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file. The bytes of a tensor are read on first access."""
    tensors, metadata = _read_one(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ValueError(f"the tensor {name} is of the type {tensor.dtype}")
    text, said = metadata.get("reft_config"), metadata.get("fingerprint")
    if (text, said) != (None, None) and fingerprint(text or "", tensors) != said:
        raise ValueError("its content is not what was saved: copy or download it again")
    return tensors, metadata


def _read_one(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read with safetensors, again if a save replaced the file: safetensors opens it twice."""
    while True:
        before = _identity(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = file.keys()
                found = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        except (safetensors.SafetensorError, OSError, RuntimeError):
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found


def _identity(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _choose(entry: Json, metadata: Mapping[str, str], path: Path) -> Json:
    """The config of the weights: that of the file, unless the file is of another save."""
    theirs, ours = entry.get("fingerprint"), metadata.get("fingerprint")
    if ours is None or theirs == ours:
        return entry
    if not isinstance(theirs, str) or not re.fullmatch("[0-9a-f]{64}", theirs):
        raise ValueError(
            f"its fingerprint is {theirs!r}, the weights have {ours!r}: keep it when you edit the "
            "config, or save the adapter again"
        )
    logger.warning(
        f"{path} holds the config of another save than its weights, which was interrupted: the "
        "config inside the weights is used. Save the adapter again to repair it."
    )
    return parse_json(metadata["reft_config"])
