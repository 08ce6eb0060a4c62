"""Train interventions with upstream's own library, stanfordnlp/pyreft 0.1.0.

upstream.py starts this with the Python of an environment that has it, and a file that says what is
trained. It imports nothing but what is there.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments, set_seed

import pyreft


class Clock(TrainerCallback):
    """The seconds that steps took, and their losses."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def on_step_begin(self, *args, **kwargs) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args, **kwargs) -> None:
        self.seconds += time.perf_counter() - self.start[0]
        self.cpu_seconds += time.process_time() - self.start[1]


def collate(rows: list[dict]) -> dict:
    """A batch, padded at the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "intervention_locations": torch.tensor([row["intervention_locations"] for row in rows]),
    }


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    base = AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=torch.float32)
    sizes = {"embed_dim": base.config.hidden_size, "low_rank_dimension": job["rank"]}
    sizes |= {"dropout": job["dropout"], "dtype": torch.float32}
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": job["rank"],
            "intervention": pyreft.LoreftIntervention(**sizes),
        }
        for layer in job["layers"]
    ]
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))
    clock = Clock()
    trainer = pyreft.ReftTrainerForCausalLM(
        model=model,
        args=TrainingArguments(**job["arguments"], remove_unused_columns=False),
        train_dataset=job["rows"],
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    model.set_device("cpu")
    model.save(job["adapter"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
    }
    Path(job["found"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
