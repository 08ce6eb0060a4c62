"""What pyreft saved in format 1: run with the pyreft of commit 6d268d5.

    git worktree add ../before 6d268d5
    cd ../before/tests/training
    PYTHONPATH=../..:..:. python ../../../main/tests/references/make_format_1.py

Writes tests/references/format_1: a checkpoint of a LoReFT, DiReFT and LobiReFT after two steps,
and their directions R^T.
"""

import shutil
import tempfile
from pathlib import Path

import runs
import torch
from safetensors.torch import save_file

import pyreft
from conftest import make_base

FOLDER = Path(__file__).parent / "format_1"
KEPT = ["reft_config.json", "reft_model.safetensors", "optimizer.pt", "scheduler.pt"]


def main() -> None:
    torch.manual_seed(0)
    kinds = ["loreft", "direft", "lobireft"]
    arguments = {"embed_dim": 32, "low_rank_dimension": 3}
    listed = [
        pyreft.InterventionConfig(n, "block_output", "l1", kind=kind, arguments=arguments)
        for n, kind in enumerate(kinds)
    ]
    config = pyreft.ReftConfig(representations=listed)
    model = pyreft.get_reft_model(make_base("llama", num_hidden_layers=3), config)
    rows = [{"input_ids": [5, 6, 7, n], "labels": [-100, -100, -100, n]} for n in range(8, 16)]
    with tempfile.TemporaryDirectory() as directory:
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        arguments = runs.make_arguments(directory, **settings)
        pyreft.ReftTrainer(model=model, args=arguments, train_dataset=rows).train()
        FOLDER.mkdir(exist_ok=True)
        for name in [*KEPT, "trainer_state.json"]:
            shutil.copy(Path(directory) / "checkpoint-2" / name, FOLDER / name)
    modules = model.interventions.values()
    directions = {
        str(n): m.rotate_layer.weight.detach().contiguous() for n, m in enumerate(modules)
    }
    save_file(directions, FOLDER / "directions.safetensors")


if __name__ == "__main__":
    main()
