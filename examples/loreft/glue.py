"""GLUE by the paper's protocol: a part of the development set picks the epoch, the rest scores."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

import methods
import metrics
import sources
import training
from arguments import Arguments
from glue_rows import read_glue
from run_folder import data_folder
from tasks import GLUE, GlueTask

# Of a large development set so many rows pick the epoch, of a small one half of them.
LARGE, PICKS = 5000, 1000
# Which training rows are held out does not depend on a run's seed.
HOLD_OUT_SEED = 42


def run(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Train and score; return what eval_results.json holds."""
    name, task = task_of(arguments)
    metric = arguments.metric_for_best_model or task.metrics[0]
    if metric not in task.metrics:
        raise ValueError(f"{name} is scored by {', '.join(task.metrics)}, not by {metric!r}.")
    tokenizer = methods.load_tokenizer(arguments)
    parts = {n: tokenized(r, tokenizer, arguments) for n, r in read_parts(arguments).items()}
    base = methods.load_base(arguments, task.outputs)
    if base.config.pad_token_id is None:
        # A decoder that classifies looks for the last token of a padded text.
        base.config.pad_token_id = tokenizer.pad_token_id
    method = methods.build(arguments, base)
    if not method.trains:
        raise ValueError("a classifier's head is random: zero_shot has nothing to score.")
    compute = metrics.compute(task.metrics)
    picks = {"eval_dataset": parts["pick"], "compute_metrics": compute, "metric": metric}
    where = (arguments, folder / "trainer", DataCollatorWithPadding(tokenizer))
    clock = training.ClockCallback()
    trainer = training.train(method, tokenizer, parts["train"], *where, [clock], picks)
    found = training.describe(trainer, method, arguments, folder)
    picked = [e[f"eval_{metric}"] for e in trainer.state.log_history if f"eval_{metric}" in e]
    scored = trainer.predict(parts["score"], metric_key_prefix=f"eval/{name}").metrics
    rows = {"rows": len(parts["score"])}
    scores = {m: scored[f"eval/{name}_{m}"] for m in task.metrics}
    return {**found, "picked": max(picked), f"eval/{name}": {**rows, **scores}}


def task_of(arguments: Arguments) -> tuple[str, GlueTask]:
    """The name and the task.

    Raises:
        ValueError: If there is no such task, or an argument is for generated tasks alone.
    """
    name = arguments.train_dataset
    if name not in GLUE:
        raise ValueError(f"of glue, -train_dataset is one of {', '.join(GLUE)}, got {name!r}.")
    for other in ("eval_dataset", "dev_steps", "max_n_eval_example", "chat_template"):
        if getattr(arguments, other):
            raise ValueError(f"glue is evaluated by its own protocol: leave out --{other}.")
    if arguments.test_split not in ("validation", "held_out"):
        split = arguments.test_split
        raise ValueError(f"of glue, test_split is validation or held_out, got {split!r}.")
    return name, GLUE[name]


def read_parts(arguments: Arguments) -> dict[str, Dataset]:
    """Rows to train on, to pick the epoch with, and to score; the last two by the seed.

    The development set of `test_split` "held_out" are rows of the training set.

    Raises:
        DataError: If there are too few rows.
    """
    name, task = task_of(arguments)
    train = read_glue(name, "train", data_folder(arguments), task)
    if arguments.test_split == "held_out":
        if len(train) <= 2 * sources.HELD_OUT:
            raise sources.DataError(
                f"{name} has {len(train)} training rows; {2 * sources.HELD_OUT} are held out."
            )
        parts = train.train_test_split(2 * sources.HELD_OUT, seed=HOLD_OUT_SEED)
        train, dev = parts["train"], parts["test"]
    else:
        dev = read_glue(name, "validation", data_folder(arguments), task)
    if len(dev) < 2:
        raise sources.DataError(f"the development set of {name} has {len(dev)} rows to halve.")
    dev = dev.shuffle(seed=arguments.seed)
    picks = PICKS if len(dev) > LARGE else len(dev) // 2
    if arguments.max_n_train_example:
        count = min(arguments.max_n_train_example, len(train))
        train = train.shuffle(seed=arguments.seed).select(range(count))
    score = dev.select(range(picks, len(dev)))
    return {"train": train, "pick": dev.select(range(picks)), "score": score}


def tokenized(rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> Dataset:
    """The rows as inputs of a classifier, cut at `max_length`."""
    texts = [column for column in ("first", "second") if column in rows.column_names]

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        given = [batch[column] for column in texts]
        return tokenizer(*given, truncation=True, max_length=arguments.max_length)

    return rows.map(tokenize, batched=True, remove_columns=texts)
