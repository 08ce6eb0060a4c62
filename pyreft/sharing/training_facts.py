"""The facts of an adapter's training, as plain values that outlive the trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyreft.annotations import Arguments

# What an evaluation logs about itself, rather than about the model.
_NO_METRIC = re.compile(r".*(_runtime|_per_second|_time)")


def is_metric(name: str) -> bool:
    """Whether an entry of an evaluation is about the model, rather than about the evaluation."""
    return _NO_METRIC.fullmatch(name) is None


@dataclass(frozen=True)
class TrainingFacts:
    """The facts of an adapter's training.

    Args:
        trainer: Name of the trainer's class.
        steps: Number of optimiser steps.
        epochs: Number of passes over the data, also a fraction.
        arguments: The settings of the run, by the names of `TrainingArguments`.
        examples: Number of training rows; None if unknown.
        datasets: Their data sets on the Hub, as far as they are known.
        log: The logged entries, in order, for the curve of the losses.
        evaluation: Metrics of the adapter as it is saved, by name, all of them finite.
        metadata: The user's metadata, by the names of the Hub's: license, language, tags,
            datasets, and model_name, the name on the Hub.
    """

    trainer: str
    steps: int
    epochs: float | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    examples: int | None = None
    datasets: Sequence[str] = ()
    log: Sequence[Mapping[str, float]] = ()
    evaluation: Mapping[str, float] = field(default_factory=dict)
    metadata: Arguments = field(default_factory=dict)
