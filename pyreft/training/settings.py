"""The options of a run, as people give them, become a config and a trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from pyreft.adapters import EditedModel
from pyreft.config import ReftConfig
from pyreft.training.recommended import Recommended
from pyreft.training.trainer import ReftTrainer

_OF_THE_CONFIG = ("layers", "positions", "rank", "kind", "tied", "dropout")


@dataclass(frozen=True)
class TrainSettings:
    """The options of a run; None is what is recommended for the model.

    `accumulate` is batches of a step, `warmup` the part of all steps in which the rate rises.
    """

    layers: str | int | None = None
    positions: str | None = None
    rank: int | None = None
    kind: str | None = None
    tied: bool | None = None
    dropout: float | None = None
    epochs: float = 3
    learning_rate: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    schedule: str = "linear"
    warmup: float = 0.0
    max_length: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup is a part of all steps, from 0 to below 1; got {self.warmup}."
            )


_COMMONSENSE = TrainSettings(
    layers="all",
    positions="f7+l7",
    rank=8,
    tied=True,
    epochs=6,
    learning_rate=9e-4,
    batch_size=16,
    accumulate=2,
    warmup=0.1,
)
# The paper's settings for LLaMA, Wu et al. 2024, appendix C.
PRESETS = {
    "commonsense": _COMMONSENSE,
    "math": replace(_COMMONSENSE, epochs=12),
    "instruct": TrainSettings(
        layers="3;9;18;24",
        positions="f5+l5",
        rank=4,
        epochs=9,
        learning_rate=9e-4,
        batch_size=4,
        accumulate=32,
        max_length=768,
    ),
}


def choose_config(settings: TrainSettings, chosen: Recommended) -> ReftConfig:
    """The config of a new adapter.

    Args:
        settings: The options.
        chosen: What is recommended for the model.

    Raises:
        ValueError: If an option is not possible.
    """
    own = {name: getattr(settings, name) for name in _OF_THE_CONFIG}
    own = {name: value for name, value in own.items() if value is not None}
    if "layers" in own:
        own["layers"] = _read_layers(own["layers"])
    return replace(chosen.config, **own)


def make_trainer(
    model: EditedModel,
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike[str],
    settings: TrainSettings,
    chosen: Recommended,
) -> ReftTrainer:
    """The trainer of a run, which saves a checkpoint after each epoch.

    Args:
        model: The model.
        examples: What it is trained on, see `make_examples`.
        tokenizer: Of its base model.
        directory: For the checkpoints.
        settings: The options.
        chosen: What is recommended for the model.
    """
    # Rates of other kinds, or from papers, are one for all of an edit.
    usual = settings.learning_rate is None and settings.kind is None
    return ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=os.fspath(directory),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate or chosen.learning_rate,
            lr_scheduler_type=settings.schedule,
            # Below 1 it is a part of all steps.
            warmup_steps=settings.warmup,
            seed=settings.seed,
            logging_steps=1,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=examples,
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios if usual else None,
    )


def _read_layers(text: str | int) -> str | list[int]:
    """ "all", or the indices in "10,12,14"."""
    if str(text).strip() == "all":
        return "all"
    try:
        return [int(index) for index in str(text).replace(";", ",").split(",")]
    except ValueError:
        raise ValueError(f"layers are all, or indices such as 10,12,14; got {text!r}.") from None
