"""What is known of how an adapter was made, as plain values that outlive their trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingFacts:
    """What a trainer knows of how an adapter was made.

    Args:
        trainer: Name of its class.
        steps: Number of optimiser steps.
        epochs: Number of passes over the data, parts of one included.
        arguments: What was set of the run, by the names of `TrainingArguments`.
        examples: Number of rows it trained on, if that is known.
        datasets: The data sets on the Hub that these came from, as far as is known.
        log: What was logged, in order, for the curve of the losses.
        evaluation: Metrics of the adapter as it is saved, by name, all of them finite.
        metadata: What the user says of the adapter, by the names of the Hub's metadata: license,
            language, tags, datasets, and model_name, the name in the Hub.
    """

    trainer: str
    steps: int
    epochs: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    examples: int | None = None
    datasets: Sequence[str] = ()
    log: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
