"""Examples -> a trained model: the one training of all methods and tasks."""

import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

import pyreft
from arguments import Arguments
from evaluation import filled, prompt_of
from methods import Method
from run_folder import read, write
from tasks import Task

# transformers below 5.2 calls it by another name.
_GROUPED = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else {"group_by_length": True}
)


def make_examples(
    rows: list[dict[str, str]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Arguments,
) -> Dataset:
    """Tokenized rows, without those whose prompt alone is as long as `max_length`."""
    chat, limit = arguments.chat_template, arguments.max_length
    texts = [prompt_of(row, task, tokenizer, chat) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=not chat)["input_ids"]]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length < limit]
    if len(fitting) < len(rows):
        warnings.warn(
            f"{len(rows) - len(fitting)} of {len(rows)} rows are left out: their prompts alone "
            f"have {limit} tokens or more (--max_length).",
            stacklevel=2,
        )
    if not fitting:
        raise ValueError(f"no row fits into {limit} tokens: raise --max_length.")
    pairs = [
        {"prompt": filled(row, task), "completion": task.completion.format(**row)}
        for row in fitting
    ]
    if chat:
        roles = {"prompt": "user", "completion": "assistant"}
        pairs = [
            {name: [{"role": roles[name], "content": text}] for name, text in pair.items()}
            for pair in pairs
        ]
    return pyreft.make_examples(Dataset.from_list(pairs), tokenizer, max_length=limit)


def train(
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    arguments: Arguments,
    folder: Path,
    collator: Callable[..., Any],
    callbacks: list[TrainerCallback],
    picks: dict[str, Any] | None = None,
) -> Trainer:
    """Train a method, going on from the last checkpoint in the folder.

    Args:
        method: What is trained.
        tokenizer: Of the base model.
        examples: To train on.
        arguments: Of the run.
        folder: For checkpoints.
        collator: Makes batches of examples.
        callbacks: Of the trainer.
        picks: `eval_dataset`, `compute_metrics`, `metric` (it chooses the best epoch), and maybe
            `steps` between evaluations.

    Returns:
        The trainer, after training.
    """
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": arguments.save_steps}
    if arguments.group_by_length and arguments.epochs > 1:
        # Groups are drawn anew in every epoch; only at its end does a resumed run draw the same.
        options = {"save_strategy": "epoch"}
    evaluates = {}
    if picks is not None:
        evaluates = {name: picks[name] for name in ("eval_dataset", "compute_metrics")}
        when = "steps" if "steps" in picks else "epoch"
        options = {
            "save_strategy": when,
            "eval_strategy": when,
            "load_best_model_at_end": True,
            "metric_for_best_model": picks["metric"],
        }
        if "steps" in picks:
            options |= {"eval_steps": picks["steps"], "save_steps": picks["steps"]}
    if arguments.group_by_length:
        options |= _GROUPED
    own = {}
    if method.trainer is pyreft.ReftTrainer and arguments.rate_ratios:
        own["learning_rate_ratios"] = _ratios(arguments.rate_ratios)
    trainer = method.trainer(
        model=method.model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_eval_batch_size=arguments.eval_batch_size,
            save_total_limit=1,
            report_to="wandb" if arguments.is_wandb else "none",
            run_name=arguments.run_name,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            **schedule(arguments, len(examples)),
            **options,
        ),
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=callbacks,
        **evaluates,
        **own,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    return trainer


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; one that was being saved when a run died is deleted.

    Raises:
        ValueError: If it names a best checkpoint that is not there.
    """
    while (found := get_last_checkpoint(str(folder)) if folder.is_dir() else None) is not None:
        state = Path(found) / "trainer_state.json"
        if state.is_file():
            best = read(state).get("best_model_checkpoint")
            if best is not None and not Path(best).is_dir():
                raise ValueError(
                    f"{found} is of a run whose best checkpoint was {best}, which is not there: "
                    f"move the folder of the run back, or delete {folder} to train again."
                )
            return found
        shutil.rmtree(found)
    return None


def describe(
    trainer: Trainer, method: Method, arguments: Arguments, folder: Path
) -> dict[str, Any]:
    """Write down what was trained; return its size, its length and its last loss."""
    history = trainer.state.log_history
    write(folder / "training.json", history)
    if arguments.save_model:
        method.model.save_pretrained(folder / "model")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    clock = [entry for entry in history if "seconds" in entry][-1]
    return {
        "n_params": method.parameters,
        "head": method.head,
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
        "seconds": clock["seconds"],
        "cpu_seconds": clock["cpu_seconds"],
        "development": [entry for entry in history if "dev_score" in entry],
    }


def schedule(arguments: Arguments, rows: int) -> dict[str, Any]:
    """What `TrainingArguments` say of batches, rates and their order, in any release."""
    batch = arguments.batch_size * arguments.gradient_accumulation_steps
    steps = arguments.max_steps
    if steps < 0:
        steps = arguments.epochs * math.ceil(rows / batch)
    return {
        "num_train_epochs": arguments.epochs,
        "max_steps": arguments.max_steps,
        "per_device_train_batch_size": arguments.batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "learning_rate": arguments.lr,
        "lr_scheduler_type": arguments.schedule,
        "warmup_steps": math.ceil(arguments.warmup_ratio * steps),
        "weight_decay": arguments.weight_decay,
        "logging_steps": arguments.logging_steps,
        "seed": arguments.seed,
        "data_seed": arguments.seed,
    }


class ClockCallback(TrainerCallback):
    """Writes into every log how many seconds the steps so far took.

    `seconds` are those of a clock and `cpu_seconds` those of all processors together, on which
    what else the machine does counts little. Evaluations and checkpoints are not counted. What an
    interrupted run had logged is added.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logged = [entry for entry in state.log_history if "seconds" in entry]
        last = logged[-1] if logged else {"seconds": 0.0, "cpu_seconds": 0.0}
        self.seconds, self.cpu_seconds = last["seconds"], last["cpu_seconds"]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu_seconds += time.process_time() - self._start[1]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.log_history[-1].update(self.read())

    def read(self) -> dict[str, float]:
        """The seconds so far."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


class DevelopmentCallback(TrainerCallback):
    """Scores the model now and then while it is trained, and logs the score as `dev_score`.

    Args:
        score: Model -> its score.
        steps: After every so many steps, and after the last one.
        clock: Of the trainer, before this.
    """

    def __init__(self, score: Callable[[Any], float], steps: int, clock: ClockCallback) -> None:
        self.score, self.steps, self.clock = score, steps, clock

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            entry = {"step": state.global_step, **self.clock.read(), "dev_score": self.score(model)}
            state.log_history.append(entry)


def _ratios(text: str) -> dict[str, float]:
    """{"R": 4.0} of "R=4"."""
    try:
        return {name: float(ratio) for name, ratio in (one.split("=") for one in text.split(";"))}
    except ValueError:
        raise ValueError(f"rate_ratios are as 'R=4;b=10', got {text!r}.") from None
