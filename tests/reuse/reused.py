"""Runs with and without reuse, and the tokens and layers that they compute."""

import contextlib
from collections import Counter

import torch
import transformers as hf
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import TrainingArguments

import pyreft
from conftest import make_base
from pyreft.base_model.stacks import find_layers

# Tokens of each prompt, and of each completion.
LENGTHS = [(9, 3), (4, 6), (14, 2), (1, 5), (6, 1), (11, 4), (3, 3), (17, 7), (2, 2), (8, 5)]
# Arguments of the trainer, and not of TrainingArguments.
TRAINER = ("compute_loss_func", "callbacks", "optimizers")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 99}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
KINDS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def make_model(architecture="llama", seed=1, base=None, **config):
    """A fresh adapter at the middle one of three layers, on a base model without dropout."""
    base = base or BASES[architecture]()
    torch.manual_seed(seed)
    if "representations" not in config:
        config = {"layers": [1], "positions": "l1", "rank": 4} | config
    return pyreft.get_reft_model(base, pyreft.ReftConfig(**config))


def make_gemma3(**changes):
    torch.manual_seed(0)
    # A window that ends inside of most prompts.
    config = hf.Gemma3TextConfig(**SIZES, **KINDS, sliding_window=4, **changes)
    return hf.Gemma3ForCausalLM(config).eval()


def make_qwen3(**changes):
    torch.manual_seed(0)
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, **changes)).eval()


def make_gpt2(**changes):
    return make_base("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **changes)


BASES = {
    "llama": lambda: make_base("llama"),
    "gpt2": make_gpt2,
    "gemma3": make_gemma3,
    "qwen3": make_qwen3,
}


class Rows(Dataset):
    """Prompts and completions of several lengths, always the same."""

    def __init__(self, lengths=LENGTHS, **columns):
        self.lengths, self.columns = lengths, columns

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        prompt, completion = self.lengths[index]
        chosen = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 99, (prompt + completion,), generator=chosen)
        labels = ids.masked_fill(torch.arange(len(ids)) < prompt, -100)
        return {"input_ids": ids, "labels": labels, **self.columns}


def collate(rows, side="right"):
    """Pad ids with 0 and labels with -100."""
    fills = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    if not rows[0]["labels"].dim():
        del fills["labels"]
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    batch = {n: pad_sequence([r[n] for r in rows], True, fills[n], side) for n in fills}
    return batch | {n: torch.stack([r[n] for r in rows]) for n in rows[0] if n not in fills}


def make_trainer(model, directory, side="right", rows=None, **changes):
    """Changes are arguments of the trainer, or of TrainingArguments."""
    reuse = {n: changes.pop(n) for n in list(changes) if n.startswith("reuse_")}
    trainer = {n: changes.pop(n) for n in TRAINER if n in changes}
    rows = rows or Rows()
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    settings |= {"logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"save_strategy": "no", "dataloader_pin_memory": False} | changes
    return pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(str(directory), **settings),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=lambda batch: collate(batch, side),
        **trainer,
        **reuse,
    )


def losses(trainer):
    """The loss of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    """A copy of all that is trained."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def computed(model):
    """Count the tokens that run through the feed-forward part of each layer, without gradient and
    with it: yields a Counter of (layer, with gradient).

    By a hook on all modules there are: a hook on a layer would forbid its reuse.
    """
    numbers = {id(layer.mlp): i for i, layer in enumerate(find_layers(model.model))}
    counted = Counter()

    def count(module, args, output):
        if id(module) in numbers:
            counted[numbers[id(module)], torch.is_grad_enabled()] += args[0].shape[:-1].numel()

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield counted
    finally:
        handle.remove()
