"""The folder of a run: its name, its arguments, and what is written there."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import methods
from arguments import Arguments

# What may differ between two sittings of one run.
_NOT_OF_THE_RUN = ("output_dir", "run_name", "is_wandb", "wandb_name", "wandb_dir", "wandb_proj")


def run_name(arguments: Arguments) -> str:
    """A name that runs with other arguments do not have."""
    # Of what has its default value nothing is said: a new argument renames no run.
    defaults = asdict(Arguments())
    config = {k: v for k, v in _config(arguments).items() if v != defaults[k] and k != "data_dir"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    model = Path(arguments.model).name
    what = arguments.train_dataset if arguments.task == "glue" else arguments.task
    return f"{model}.{what}.{arguments.intervention_type}.{arguments.seed}.{digest}"


def make_folder(arguments: Arguments) -> Path:
    """The folder of a run, named after its arguments, with config.json in it.

    Raises:
        ValueError: If a folder of this name is of a run with other arguments.
    """
    config = _config(arguments)
    folder = Path(arguments.output_dir) / (arguments.run_name or run_name(arguments))
    file = folder / "config.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := [k for k, v in config.items() if before.get(k) != v]:
            raise ValueError(
                f"{folder} is of a run with another {', '.join(changed)}: give another --run_name, "
                "or none."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write(file, config)
    return folder


def _config(arguments: Arguments) -> dict[str, Any]:
    return {k: v for k, v in asdict(arguments).items() if k not in _NOT_OF_THE_RUN}


def describe(
    trainer: Any, method: methods.Method, arguments: Arguments, folder: Path
) -> dict[str, Any]:
    """Write down what was trained; return its size, its length and its last loss."""
    history = trainer.state.log_history
    write(folder / "training.json", history)
    if arguments.save_model:
        method.model.save_pretrained(folder / "model")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    clock = [entry for entry in history if "seconds" in entry][-1]
    return {
        "n_params": method.parameters,
        "head": method.head,
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
        "seconds": clock["seconds"],
        "cpu_seconds": clock["cpu_seconds"],
        "development": [entry for entry in history if "dev_score" in entry],
    }


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


def write(file: Path, content: object) -> None:
    """Write JSON, of which a run that dies meanwhile leaves nothing."""
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=4), encoding="utf-8")
    os.replace(unfinished, file)
