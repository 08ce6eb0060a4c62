"""One process of a run with several: trains as its arguments say, and writes down what came out.

    python -m torch.distributed.run --nproc_per_node 2 distributed_worker.py DIRECTORY ddp fsdp
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

import pyreft
from conftest import make_base

STEPS, ROWS_PER_STEP = 6, 4
# The tokens of each prompt, and of each completion. A prompt of one token has no first half, so
# that "f2" edits nothing there.
LENGTHS = [(1, 2), (6, 7), (1, 5), (4, 1), (9, 3), (1, 1), (2, 8), (1, 4), (5, 2), (1, 6)]


class Rows(Dataset):
    """Rows of several lengths, always the same."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        prompt, completion = LENGTHS[index % len(LENGTHS)]
        chosen = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 99, (prompt + completion,), generator=chosen)
        labels = ids.masked_fill(torch.arange(len(ids)) < prompt, -100)
        return {"input_ids": ids, "labels": labels}


def pad(rows):
    ids = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def make_model(seed):
    """The same base model in each process, and an adapter that starts as the seed says."""
    base = make_base("llama")
    torch.manual_seed(seed)
    interventions = [
        {"layer": layer, "component": "block_output", "positions": positions, "low_rank_dimension": 2}
        for layer in (0, 1)
        for positions in ("f2", "l2")
    ]
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=interventions))


def train(directory, *, processes, resume=None, **arguments):
    """The trainer after a run of `STEPS` steps of `ROWS_PER_STEP` rows, in all processes."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = make_model(seed=0 if resume is None else 7 + rank)
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            str(directory),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS_PER_STEP if processes == 1 else 1,
            gradient_accumulation_steps=1 if processes == 1 else ROWS_PER_STEP // processes,
            per_device_eval_batch_size=4,
            learning_rate=5e-2,
            weight_decay=0.1,
            max_grad_norm=0.3,
            logging_steps=1,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=3,
            save_steps=3,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            # So that the best is not the last.
            greater_is_better=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **arguments,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        data_collator=pad,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


SHARDED = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


def main():
    out, ways = Path(sys.argv[1]), sys.argv[2:]
    for way in ways:
        arguments = SHARDED if way == "fsdp" else {}
        trainer = train(out / way, processes=2, **arguments)
        keep(trainer, out / f"{way}-{dist.get_rank()}.safetensors")
        resume = str(out / way / "checkpoint-3")
        trainer = train(out / f"{way}-resumed", processes=2, resume=resume, **arguments)
        keep(trainer, out / f"{way}-resumed-{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


def keep(trainer, path):
    """What a process ends with: its losses, and its copy of the adapter."""
    history = trainer.state.log_history
    losses = torch.tensor([entry["loss"] for entry in history if "loss" in entry])
    measured = torch.tensor([entry["eval_loss"] for entry in history if "eval_loss" in entry])
    parameters = {name: p.detach() for name, p in trainer.model.interventions.named_parameters()}
    save_file({"losses": losses, "eval_losses": measured, **parameters}, path)


if __name__ == "__main__":
    main()
