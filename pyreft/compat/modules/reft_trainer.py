"""`pyreft.reft_trainer`, as upstream names it."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from pyreft.annotations import Example, Inputs
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


def make_data_collator(
    tokenizer: PreTrainedTokenizerBase, model: nn.Module | None
) -> ReftDataCollator:
    """The collator of upstream's trainers: texts are padded to the longest of a batch."""
    return ReftDataCollator(DataCollatorForSeq2Seq(tokenizer, model, label_pad_token_id=-100))


def make_dataloader(
    dataset: Dataset[Example],
    batch_size: int,
    collate_fn: Callable[[list[Example]], Inputs],
    shuffle: bool,
    sampler: Sampler[int] | Iterable[int] | None = None,
) -> DataLoader[Example]:
    """A loader of batches; upstream's order of arguments."""
    return DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, sampler=sampler, collate_fn=collate_fn
    )
