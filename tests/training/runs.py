"""Runs of a trainer on a tiny model, and what is compared of them."""

import dataclasses
import functools

import torch
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

import pyreft
from conftest import make_base

PROMPTS = [f"say {letter}: " for letter in "abcdefgh"]
# Of different lengths, so that a mean over rows is not one over tokens.
COMPLETIONS = [letter * (1 + index) for index, letter in enumerate("abcdefgh")]

# Four steps on a CPU, quiet, that leave nothing on disk.
SETTINGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


def reft_model(architecture="llama", **changes):
    torch.manual_seed(1)
    config = pyreft.ReftConfig(**{"layers": [1], "positions": "l1", "rank": 4} | changes)
    return pyreft.get_reft_model(make_base(architecture), config)


@functools.cache
def make_examples(tokenizer):
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS})
    return pyreft.make_examples(rows, tokenizer)


def make_arguments(directory, **changes):
    return Seq2SeqTrainingArguments(str(directory), **SETTINGS | changes)


def make_trainer(model, tokenizer, directory, cls=pyreft.ReftTrainer, **changes):
    """Changes are fields of the training arguments, or arguments of the trainer."""
    fields = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    settings = {name: changes.pop(name) for name in fields & changes.keys()}
    arguments = {
        "model": model,
        "args": make_arguments(directory, **settings),
        "data_collator": pyreft.ReftDataCollator(tokenizer=tokenizer),
        "train_dataset": make_examples(tokenizer),
        "eval_dataset": make_examples(tokenizer),
    }
    return cls(**arguments | changes)


def logged(trainer, name):
    """What a run logged under a name, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def losses(trainer):
    return logged(trainer, "loss")


def weights(model):
    """A copy of all that the adapter has learned, a head and a LoRA included."""
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {name: tensor.detach().clone() for name, tensor in learned.items()}


def assert_equal(ours, theirs):
    """The weights are the same, bit for bit."""
    assert ours.keys() == theirs.keys()
    assert ours, "nothing is trained"
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def assert_close(ours, theirs, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
