"""The folder of a run: its name, its arguments, and what is written there."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from arguments import Arguments

# Arguments that may change when a run is resumed.
_NOT_OF_THE_RUN = ("output_dir", "run_name", "is_wandb", "wandb_name", "wandb_dir", "wandb_proj")
_NOT_OF_THE_RUN += ("data_dir", "eval_batch_size")


def run_name(arguments: Arguments, **more: object) -> str:
    """A name that runs with other arguments do not have.

    Args:
        arguments: Of the run.
        more: What else a run differs in.
    """
    # Defaults are left out, so that a new argument does not rename old runs.
    config = {**_changed(_config(arguments)), **more}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    model = Path(arguments.model).name
    what = arguments.train_dataset if arguments.task == "glue" else arguments.task
    return f"{model}.{what}.{arguments.intervention_type}.{arguments.seed}.{digest}"


@contextmanager
def run_folder(arguments: Arguments) -> Iterator[Path]:
    """The folder of a run, named after its arguments, for one process at a time.

    Raises:
        ValueError: If a folder of this name is of a run with other arguments, or another process
            has it.
    """
    config = _config(arguments)
    folder = Path(arguments.output_dir) / (arguments.run_name or run_name(arguments))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            file = folder / "config.json"
            before = _changed(read(file)) if file.exists() else _changed(config)
            now = _changed(config)
            if changed := [k for k in {**now, **before} if now.get(k) != before.get(k)]:
                raise ValueError(
                    f"{folder} is of a run with another {', '.join(changed)}: name another folder "
                    "with --run_name."
                )
            write(file, config)
            yield folder
    except Timeout:
        raise ValueError(f"another process runs in {folder}.") from None


def _config(arguments: Arguments) -> dict[str, Any]:
    return {k: v for k, v in asdict(arguments).items() if k not in _NOT_OF_THE_RUN}


def _changed(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments that do not have their default values."""
    defaults = asdict(Arguments())
    return {k: v for k, v in config.items() if k not in _NOT_OF_THE_RUN and v != defaults.get(k)}


def data_folder(arguments: Arguments) -> Path | None:
    """The local folder of the data, if one is given.

    Raises:
        ValueError: If it is not there.
    """
    if arguments.data_dir is None:
        return None
    folder = Path(arguments.data_dir)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} (--data_dir).")
    return folder


def read(file: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: If the file holds none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Delete it, and run again.") from error


def write(file: Path, content: object) -> None:
    """Write JSON atomically."""
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=4), encoding="utf-8")
    os.replace(unfinished, file)
