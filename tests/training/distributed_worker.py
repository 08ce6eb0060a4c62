"""One process of a run with several: trains in several ways, and writes down what came out.

python -m torch.distributed.run --nproc_per_node 2 distributed_worker.py DIRECTORY
"""

import contextlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

import pyreft
from conftest import make_base

STEPS, ROWS_PER_STEP = 6, 4
# The tokens of each prompt, and of each completion. A prompt of one token has no first half, so
# that "f2" edits nothing there.
LENGTHS = [(1, 2), (6, 7), (1, 5), (4, 1), (9, 3), (1, 1), (2, 8), (1, 4), (5, 2), (1, 6)]


def allow_fsdp_on_cpu():
    """accelerate turns FSDP on for accelerators only, and else runs DDP without a word.

    All that comes after works on CPU as well.
    """
    init = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


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


def make_model(seed, base=None):
    """The same base model in each process, and an adapter that starts as the seed says."""
    base = base or make_base("llama", tie_word_embeddings=True)
    torch.manual_seed(seed)
    interventions = [
        {
            "layer": layer,
            "component": "block_output",
            "positions": spec,
            "low_rank_dimension": 2,
        }
        for layer in (0, 1)
        for spec in ("f2", "l2")
    ]
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=interventions))


def train(directory, *, processes, resume=None, base=None, **arguments):
    """The trainer after a run of `STEPS` steps of `ROWS_PER_STEP` rows, in all processes."""
    rank = int(os.environ.get("RANK", "0"))
    model = make_model(seed=rank if resume is None else 7 + rank, base=base)
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
        # So that the run of one process is the plain one.
        reuse_frozen=processes > 1,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


WAYS = {
    "ddp": {},
    "ddp-no-buffers": {"ddp_broadcast_buffers": False},
    "fsdp": {"fsdp": True, "fsdp_config": {"version": 2}},
}


def sharding():
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        activation_checkpointing=True,
    )


def loop(*, processes, plugin=None):
    """A loop of one's own, that trains a part of the base model too, and no whole intervention."""
    # Processes that wait for each other in vain end in an error.
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=120))
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, kwargs_handlers=[patience])
    model = make_model(seed=accelerator.process_index)
    model.model.model.norm.weight.requires_grad_(True)
    # Frozen as it starts, which differs from process to process.
    next(iter(model.interventions.values())).learned_source.bias.requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    if plugin is not None:
        pyreft.shard_only_frozen(accelerator, model)
    model, optimizer = accelerator.prepare(model, optimizer)
    rows, losses = Rows(), []
    for step in range(STEPS):
        batch = [rows[(step * ROWS_PER_STEP + i) % len(rows)] for i in range(ROWS_PER_STEP)]
        tokens = sum(int((row["labels"] != -100).sum()) for row in batch)
        mine = batch[accelerator.process_index :: processes]
        total = 0.0
        for i, row in enumerate(mine):
            last = i == len(mine) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = model(**pad([row]), num_items_in_batch=tokens).loss
                accelerator.backward(loss * processes)
            total += loss.item()
        accelerator.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(torch.tensor(total), "sum"))
    model = accelerator.unwrap_model(model)
    return {"losses": torch.stack(losses)} | trained(model)


def trained(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def of_trainer(trainer):
    """What a process ends with: its losses, how much of the base it has, its copy of the rest."""
    history = trainer.state.log_history
    losses = torch.tensor([entry["loss"] for entry in history if "loss" in entry])
    sharded = sum(isinstance(p, DTensor) for p in trainer.model.model.parameters())
    return {"losses": losses, "sharded": torch.tensor(sharded)} | trained(trainer.model)


def main():
    out = Path(sys.argv[1])
    allow_fsdp_on_cpu()
    write(loop(processes=2), out, "loop")
    for way, arguments in WAYS.items():
        trainer = train(out / way, processes=2, **arguments)
        write(of_trainer(trainer), out, way)
        resume = str(out / way / "checkpoint-3")
        trainer = train(out / f"{way}-resumed", processes=2, resume=resume, **arguments)
        write(of_trainer(trainer), out, f"{way}-resumed")
    AcceleratorState._reset_state()
    write(loop(processes=2, plugin=sharding()), out, "fsdp-loop")
    leave()


def write(tensors, out, name):
    save_file(tensors, out / f"{name}-{dist.get_rank()}.safetensors")


def leave():
    """End this process at once.

    Caches of torch and DeepSpeed hold the process group after it is destroyed, so gloo's threads
    go on while the interpreter ends, and now and then abort it ("terminate called").
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
