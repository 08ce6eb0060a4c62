"""What a model card says of the run of a trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from pyreft.sharing.training_facts import TrainingFacts, is_metric

# What is always said of a run, where it applies, and what is said where it is not the default.
_MAIN = ("learning_rate", "lr_scheduler_type", "optim", "seed")
_IF_CHANGED = (
    *("warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm", "label_smoothing_factor"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs"),
    *("neftune_noise_alpha", "data_seed", "full_determinism", "gradient_checkpointing"),
)
_ON_HUB = re.compile(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)@")


def training_facts(
    trainer: Trainer, metadata: Mapping[str, object], best_since: int | None, with_log: bool = True
) -> TrainingFacts:
    """What is known now.

    Args:
        trainer: The trainer, before, after or during its run.
        metadata: What the user says of the adapter, see `TrainingFacts`.
        best_since: How many entries the log had when the best checkpoint was loaded, if it was.
        with_log: Whether to keep the log, which the curve of losses is drawn from.
    """
    state = trainer.state
    return TrainingFacts(
        trainer=type(trainer).__name__,
        steps=state.global_step,
        epochs=state.epoch if state.global_step else None,
        arguments=_arguments(trainer) if state.global_step else {},
        examples=len(trainer.train_dataset) if has_length(trainer.train_dataset) else None,
        datasets=_datasets(trainer.train_dataset),
        log=list(state.log_history) if with_log else [],
        evaluation=_evaluation(state, best_since),
        metadata=metadata,
    )


def _arguments(trainer: Trainer) -> dict[str, object]:
    args: TrainingArguments = trainer.args
    length = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    said: dict[str, object] = {length: getattr(args, length), "batch size": batch}
    said |= {name: getattr(args, name) for name in _MAIN} | {"mixed precision": precision}
    defaults = {field.name: field.default for field in fields(args)}
    for name in _IF_CHANGED:
        if name in defaults and getattr(args, name) != defaults[name]:
            said[name] = getattr(args, name)
    # Of the trainers that have them.
    ratios = getattr(trainer, "learning_rate_ratios", None) or {}
    said["learning rate ratios"] = ", ".join(f"{role} {ratio:g}" for role, ratio in ratios.items())
    return {name: getattr(v, "value", v) for name, v in said.items() if v not in (None, {}, "")}


def _datasets(dataset: object) -> list[str]:
    """The names on the Hub of the sources of a data set, if `datasets` has kept them."""
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    found = (_ON_HUB.match(str(file)) for file in files)
    return list(dict.fromkeys(match[1] for match in found if match))


def _evaluation(state: TrainerState, best_since: int | None) -> dict[str, float]:
    """The metrics of the newest evaluation of the weights that the model has now."""
    entries = [
        (index, entry)
        for index, entry in enumerate(state.log_history)
        if any(name.startswith("eval_") for name in entry)
    ]
    if best_since is not None and not any(index >= best_since for index, _ in entries):
        # Nothing was evaluated since the best weights came back: what they had is theirs.
        best = int(str(state.best_model_checkpoint).rpartition("-")[2])
        entries = [(index, entry) for index, entry in entries if entry["step"] == best]
    newest = [entry for _, entry in entries if entry["step"] == entries[-1][1]["step"]]
    metrics = {name: value for entry in newest for name, value in entry.items()}
    return {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if name.startswith("eval_") and is_metric(name) and _is_number(value)
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
