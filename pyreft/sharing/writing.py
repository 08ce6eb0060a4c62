"""adapter -> directory, so that a reader always sees the old adapter or the new one.

    .reft_model.safetensors.<process>.tmp  ...    all files, written and on the disk
    reft_model.safetensors                        renamed: from here on it is the new adapter
    reft_config.json, PEFT's files                renamed after it

The weights file contains the whole adapter, so renaming it replaces the adapter.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch

from pyreft.sharing.checkpoint import (
    CONFIG_NAME,
    LORA_FILES,
    MAX_CONFIG,
    WEIGHTS_NAME,
    Adapter,
    AdapterError,
)
from pyreft.sharing.entry import make_entry
from pyreft.sharing.reading import fingerprint

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

# The files that a killed save left.
_TEMPORARY = re.compile(
    r"\.((reft|adapter)_(config\.json|model\.safetensors)|README\.md|reft_loss\.png)\.\d+\.tmp"
)
# The files of tokenizers, trainers and repositories beside an adapter.
_BESIDE = re.compile(
    r"\.git.*|\.cache|README\.md|LICENSE.*|.*tokenizer.*|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\..*|merges\.txt|spiece\.model|chat_template.*|"
    r"generation_config\.json|training_args\.bin|trainer_state\.json|optimizer\..*|"
    r"scheduler\.pt|scaler\.pt|rng_state.*|checkpoint-\d+|runs|logs|.*\.png|"
    rf"{re.escape(WEIGHTS_NAME)}|{_TEMPORARY.pattern}"
)


def save_adapter(
    directory: str | os.PathLike[str],
    adapter: Adapter,
    allow_other_files: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write an adapter; a reader sees it whole or not at all. See `ReftModel.save_pretrained`.

    Args:
        directory: The directory to write to.
        adapter: The adapter to save.
        allow_other_files: Write even if the directory holds other files.
        beside: Further files, by name, such as those of PEFT's LoRA.

    Raises:
        AdapterError: If the directory holds something else.
        OSError: If the disk is full, or fails; the old adapter is unchanged.
    """
    # Copies, because one tensor may have two names.
    tensors = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in adapter.tensors.items()
    }
    entry = make_entry(adapter)
    text = json.dumps(entry)
    metadata = {"reft_config": text, "fingerprint": fingerprint(text, tensors)}
    config = json.dumps(entry | {"fingerprint": metadata["fingerprint"]}, indent=2) + "\n"
    if len(config) > MAX_CONFIG:
        raise AdapterError(f"the config of the adapter is larger than {MAX_CONFIG:,} bytes.")
    weights = _in_order(safetensors.torch.save(tensors, metadata=metadata))
    files = {WEIGHTS_NAME: weights, **(beside or {}), CONFIG_NAME: config.encode()}
    path = _writable(directory, allow_other_files)
    write_files(path, files)


def _in_order(weights: bytes) -> bytes:
    """The same file with sorted metadata, whose order is random in safetensors.

    An unchanged adapter then has the same bytes, and needs no new commit on the Hub.
    """
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + weights[8 + size :]


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files one after the other; each appears whole or not at all."""
    with _alone(directory):
        _write(directory, files)


def _writable(directory: str | os.PathLike[str], allow_other_files: bool) -> Path:
    """The directory, created if it did not exist."""
    if not os.fspath(directory):
        raise AdapterError("cannot save an adapter without the name of a directory.")
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise AdapterError(f"cannot save an adapter to {str(path)!r}: {error}") from error
    foreign = sorted(n for n in names if not _BESIDE.fullmatch(n))
    # A killed save may have renamed PEFT's files, and not yet the config.
    if WEIGHTS_NAME in names:
        foreign = [name for name in foreign if name not in LORA_FILES]
    if foreign and CONFIG_NAME not in names and not allow_other_files:
        raise AdapterError(
            f"will not save an adapter to {str(path)!r}: it holds {', '.join(foreign[:5])}. "
            "Choose a new directory, or pass allow_other_files=True."
        )
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock the directory against other saves, and delete the files of killed ones."""
    if fcntl is None:
        yield
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_EX)
            for name in os.listdir(path):
                if _TEMPORARY.fullmatch(name):
                    (path / name).unlink(missing_ok=True)
        try:
            yield
        finally:
            # Unlock explicitly: a process that was forked meanwhile has the descriptor as well.
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_UN)
    finally:
        os.close(directory)


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write all files under temporary names, then rename them in their order."""
    temporaries = {name: path / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        for name, data in files.items():
            temporaries[name].unlink(missing_ok=True)
            # "x" does not follow a link of that name.
            with open(temporaries[name], "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name, temporary in temporaries.items():
            os.replace(temporary, path / name)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # Windows cannot open directories
        _sync(path)


def _sync(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
