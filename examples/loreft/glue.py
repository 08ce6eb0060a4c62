"""GLUE by the paper's protocol: a part of the development set picks the epoch, the rest scores."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding

import methods
import metrics
import sources
import training
from arguments import Arguments
from run_folder import data_folder, describe
from tasks import GLUE, GlueTask

# Of a large development set so many rows pick the epoch, of a small one half of them.
LARGE, PICKS = 5000, 1000
# Which training rows are held out does not depend on a run's seed.
HOLD_OUT_SEED = 42


def run(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """The paper's protocol: one part of the development set picks the epoch, the other scores."""
    name = arguments.train_dataset
    if name not in GLUE:
        raise ValueError(f"of glue, -train_dataset is one of {', '.join(GLUE)}, got {name!r}.")
    task = GLUE[name]
    tokenizer = methods.load_tokenizer(arguments)
    labels = 1 if task.labels is None else len(task.labels)
    base = methods.load_base(arguments, labels)
    if base.config.pad_token_id is None:
        # A decoder that classifies looks for the last token of a padded text.
        base.config.pad_token_id = tokenizer.pad_token_id
    method = methods.build(arguments, base)
    parts = read_glue_parts(task, name, arguments)
    data = {part: tokenize(rows, tokenizer, arguments) for part, rows in parts.items()}
    compute = metrics.compute(task.metrics)
    metric = arguments.metric_for_best_model or task.metrics[0]
    if metric not in task.metrics:
        raise ValueError(f"{name} is scored by {', '.join(task.metrics)}, not by {metric!r}.")
    if not method.trains:
        raise ValueError("a classifier's head is random: zero_shot has nothing to score.")
    picks = {"eval_dataset": data["pick"], "compute_metrics": compute, "metric": metric}
    trainer = training.train(
        method,
        tokenizer,
        data["train"],
        arguments,
        folder / "trainer",
        DataCollatorWithPadding(tokenizer),
        [training.Clock()],
        picks,
    )
    found = describe(trainer, method, arguments, folder)
    picked = [e[f"eval_{metric}"] for e in trainer.state.log_history if f"eval_{metric}" in e]
    scored = trainer.predict(data["score"], metric_key_prefix=f"eval/{name}").metrics
    rows = {"rows": len(data["score"])}
    scores = {m: scored[f"eval/{name}_{m}"] for m in task.metrics}
    return {**found, "picked": max(picked), f"eval/{name}": {**rows, **scores}}


def read_glue_parts(task: GlueTask, name: str, arguments: Arguments) -> dict[str, Dataset]:
    """Rows to train on, to pick the epoch with, and to score; the last two by the seed.

    The development set of `test_split` "held_out" are rows of the training set.
    """
    where = (data_folder(arguments), name)
    train = sources.read_glue(task, "train", *where)
    if arguments.test_split == "held_out":
        parts = train.train_test_split(2 * sources.HELD_OUT, seed=HOLD_OUT_SEED)
        train, dev = parts["train"], parts["test"]
    else:
        dev = sources.read_glue(task, "validation", *where)
    dev = dev.shuffle(seed=arguments.seed)
    picks = PICKS if len(dev) > LARGE else len(dev) // 2
    if arguments.max_n_train_example:
        count = min(arguments.max_n_train_example, len(train))
        train = train.shuffle(seed=arguments.seed).select(range(count))
    score = dev.select(range(picks, len(dev)))
    return {"train": train, "pick": dev.select(range(picks)), "score": score}


def tokenize(rows: Dataset, tokenizer: Any, arguments: Arguments) -> Dataset:
    texts = [column for column in ("first", "second") if column in rows.column_names]

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        given = [batch[column] for column in texts]
        return tokenizer(*given, truncation=True, max_length=arguments.max_length)

    return rows.map(tokenize, batched=True, remove_columns=texts)
