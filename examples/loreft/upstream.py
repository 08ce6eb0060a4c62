"""Training by upstream's own library, as a method to compare with: `-type upstream`.

It is trained in an environment of its own, on the same examples. What it saved is loaded here, and
evaluated as everything else is.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

import methods
import pyreft
from arguments import Arguments
from pyreft.compat.upstream_files import read_upstream
from training import schedule

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent / "benchmarks"))
import harness  # noqa: E402  # lies in another folder of the examples

NAME = "upstream"


def train(
    base: PreTrainedModel, examples: Dataset, arguments: Arguments, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Train LoReFT with upstream's library.

    Args:
        base: The base model to load what was trained on.
        examples: To train on, with input_ids and labels.
        arguments: Of the run.
        folder: Of the run.

    Returns:
        The model, and what training.describe says of a run.

    Raises:
        ValueError: If upstream cannot train this, or would edit a token of a short prompt twice.
    """
    if arguments.intervention_type != NAME or arguments.use_lora or arguments.rate_ratios:
        raise ValueError("upstream trains LoReFT alone, at one rate.")
    first, last = pyreft.parse_positions(arguments.position)
    layers = methods.layers_of(arguments.layers)
    layers = list(range(base.config.num_hidden_layers)) if layers == "all" else list(layers)
    tied = arguments.share_weights or not (first and last)
    if not tied and first != last:
        raise ValueError(
            f"upstream edits as many tokens with each intervention, not {first} and {last}: share "
            "their weights (--share_weights), or name as many."
        )
    adapter, found = folder / "upstream", folder / "upstream.json"
    if not found.exists():
        rows = [_with_positions(row, first, last, layers, tied) for row in examples]
        job = {"layers": layers if tied else layers * 2, "rows": rows}
        _run(job, arguments, {"adapter": adapter, "found": found})
    parts = [f"f{first}"] * bool(first) + [f"l{last}"] * bool(last)
    spec = "+".join(parts) if tied else [part for part in parts for _ in layers]
    model = pyreft.ReftModel.from_pretrained(base, read_upstream(adapter, positions=spec))
    sizes = {"n_params": model.count_parameters(), "head": 0, "development": []}
    return model, {**sizes, **json.loads(found.read_text(encoding="utf-8"))}


def _run(job: dict[str, Any], arguments: Arguments, files: dict[str, Path]) -> None:
    """Train in upstream's environment, which is made if it is not there."""
    python = harness.python_of(NAME, Path(arguments.output_dir))
    with tempfile.TemporaryDirectory() as folder:
        model = harness.for_older_releases(methods.path_of(arguments.model), Path(folder))
        own = {"output_dir": folder, "save_strategy": "no", "report_to": "none"}
        own |= {"group_by_length": arguments.group_by_length}
        own |= {"use_cpu": not torch.cuda.is_available()}
        job = {
            **job,
            "model": model,
            "rank": arguments.rank,
            "dropout": arguments.dropout,
            "seed": arguments.seed,
            "threads": torch.get_num_threads(),
            "arguments": {**schedule(arguments, len(job["rows"])), **own},
            **{name: str(file.absolute()) for name, file in files.items()},
        }
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        # Not here, and without our own package on the path of its Python.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [python, str(_HERE / "upstream_worker.py"), str(file)]
        subprocess.run(command, check=True, cwd=folder, env=environment)


def _with_positions(
    row: dict[str, list[int]], first: int, last: int, layers: list[int], tied: bool
) -> dict[str, Any]:
    """An example with the positions of each intervention."""
    prompt = sum(label == -100 for label in row["labels"])
    if prompt < first + last:
        raise ValueError(
            f"a prompt of {prompt} tokens is too short for f{first}+l{last}: upstream would edit a "
            "token twice. Name fewer positions."
        )
    prefix, suffix = list(range(first)), list(range(prompt - last, prompt))
    parts = [prefix + suffix] if tied else [prefix, suffix]
    own = [part for part in parts for _ in layers]
    return {"input_ids": row["input_ids"], "labels": row["labels"], "intervention_locations": own}
