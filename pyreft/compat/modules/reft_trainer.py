"""`pyreft.reft_trainer`, as upstream names it."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import DataCollatorForSeq2Seq

from pyreft.data import ReftDataCollator
from pyreft.training import (
    ReftTrainer,
    ReftTrainerForCausalLM,
    ReftTrainerForCausalLMDistributed,
    ReftTrainerForSequenceClassification,
)

__all__ = [
    "ReftDataCollator",
    "ReftTrainer",
    "ReftTrainerForCausalLM",
    "ReftTrainerForCausalLMDistributed",
    "ReftTrainerForSequenceClassification",
    "make_data_collator",
    "make_dataloader",
]


def make_data_collator(tokenizer: Any, model: Any) -> ReftDataCollator:
    """The collator of upstream's trainers: texts are padded to the longest of a batch."""
    return ReftDataCollator(DataCollatorForSeq2Seq(tokenizer, model, label_pad_token_id=-100))


def make_dataloader(
    dataset: Dataset,
    batch_size: int,
    collate_fn: Callable,
    shuffle: bool,
    sampler: Sampler | Iterable | None = None,
) -> DataLoader:
    """A loader of batches; upstream's order of arguments."""
    return DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, sampler=sampler, collate_fn=collate_fn
    )
