"""Train and evaluate ReFT, or a baseline, on a task of the paper (Wu et al. 2024, section 4).

    python examples/loreft/train.py -task commonsense -data_dir dataset -model yahma/llama-7b-hf \\
        -l all -r 8 -p f7+l7 -e 6 -lr 9e-4 -type LoreftIntervention -batch_size 16 \\
        -gradient_accumulation_steps 2 --test_split test --share_weights --warmup_ratio 0.1 \\
        --greedy_decoding
    python examples/loreft/train.py --preset commonsense-llama-7b      # the same
    python examples/loreft/train.py --preset mrpc-minilm -data_dir glue -type lora

Every run has a folder: config.json, what was generated for each data set, eval_results.json.
Running the same command again resumes an interrupted run, in training or in evaluation.
"""

import json
import os
import sys
import warnings
from typing import Any

from transformers import set_seed

import generated
import glue
from arguments import Arguments, command, parse
from run_folder import read, run_folder, write
from tasks import TASK_NAMES


def run(arguments: Arguments) -> dict[str, Any]:
    """Train and evaluate; return what eval_results.json holds.

    Raises:
        ValueError: If there is no such task, data set, method or layer, or another process runs
            in the folder of this run.
    """
    if arguments.task not in TASK_NAMES:
        names = ", ".join(TASK_NAMES)
        raise ValueError(f"there is no task {arguments.task!r}; there are {names}.")
    if arguments.train_on_inputs:
        warnings.warn("train_on_inputs changes nothing, as in upstream's code.", stacklevel=2)
    with run_folder(arguments) as folder:
        results = folder / "eval_results.json"
        if results.exists():
            print(f"{folder} is done: {results}")
            return read(results)
        set_seed(arguments.seed)
        found = (glue if arguments.task == "glue" else generated).run(arguments, folder)
        write(results, found)
    print(json.dumps(found, indent=4))
    print(f"The results are in {folder}.")
    return found


@command
def main() -> None:
    arguments, _ = parse(sys.argv[1:], __doc__.splitlines()[0])
    if arguments.is_wandb:
        os.environ |= {"WANDB_PROJECT": f"{arguments.wandb_proj}_{arguments.task}"}
        os.environ |= {"WANDB_DIR": arguments.wandb_dir, "WANDB_ENTITY": arguments.wandb_name}
    run(arguments)


if __name__ == "__main__":
    main()
