"""Tasks whose answers are generated: training, and the evaluation of every data set."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import methods
import pyreft
import sources
import training
import upstream
from arguments import Arguments
from evaluation import Evaluation
from run_folder import data_folder, describe, write
from tasks import TASKS, Task

# The rows that all runs are evaluated on do not depend on their seed.
EVALUATION_SEED = 42


def run(arguments: Arguments, folder: Path) -> dict[str, Any]:
    task = TASKS[arguments.task]
    tests = read_tests(task, arguments)
    tokenizer = methods.load_tokenizer(arguments)
    base = methods.load_base(arguments, labels=None)
    evaluation = Evaluation(task, tokenizer, arguments)
    if arguments.intervention_type == upstream.NAME:
        rows = read_training(task, arguments)
        examples = training.make_examples(rows, task, tokenizer, arguments)
        model, found = upstream.train(base, examples, arguments, folder)
    else:
        method = methods.build(arguments, base)
        model, found = method.model, {"n_params": method.parameters, "head": method.head}
        if method.trains:
            found |= train_generated(method, task, tokenizer, arguments, folder, evaluation)
    for name, rows in tests.items():
        file = folder / f"{name}_{arguments.test_split}_outputs.jsonl"
        report, lines = evaluation.run(model, rows, file, name)
        if task.answer is None:
            lines = [{**line, "generator": folder.name, "dataset": name} for line in lines]
        for line in lines:
            del line["row"]
        write(file.with_suffix(".json"), lines)
        found[f"eval/{name}"] = report.as_json()
    return found


def train_generated(
    method: methods.Method,
    task: Task,
    tokenizer: Any,
    arguments: Arguments,
    folder: Path,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Train on the task's rows; how long that took, and the last loss."""
    examples = training.make_examples(read_training(task, arguments), task, tokenizer, arguments)
    clock = training.Clock()
    callbacks = [clock]
    if arguments.dev_steps:
        own = {"test_split": "validation", "eval_dataset": None}
        own |= {"max_n_eval_example": arguments.max_n_dev_example}
        held_out = read_tests(task, replace(arguments, **own)).values()
        rows = [row for rows in held_out for row in rows]

        def score(model: Any) -> float:
            return evaluation.run(model, rows, None, "development")[0].score or 0.0

        callbacks.append(training.Development(score, arguments.dev_steps, clock))
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer)
    trainer = training.train(
        method, tokenizer, examples, arguments, folder / "trainer", collator, callbacks
    )
    return describe(trainer, method, arguments, folder)


def read_training(task: Task, arguments: Arguments) -> list[dict[str, str]]:
    """The rows to train on: those of all data sets, or as many of them as is asked."""
    holds_out = task.answer is not None
    holds_out &= arguments.test_split == "validation" or arguments.dev_steps > 0
    where = (data_folder(arguments), holds_out)
    names = _training_sets(task, arguments)
    rows = [row for name in names for row in sources.read_rows(name, "train", *where)]
    return some(rows, arguments.max_n_train_example, arguments.seed)


def read_tests(task: Task, arguments: Arguments) -> dict[str, list[dict[str, str]]]:
    """Data set -> the rows to evaluate on.

    Without `eval_dataset` those are the task's; of the split "validation", the training sets'.
    What is not scored has a test set alone.
    """
    split = arguments.test_split
    if split not in ("validation", "test"):
        raise ValueError(f"test_split is validation or test, got {split!r}.")
    names = task.tests
    if task.answer is None:
        split = "test"
    elif split == "validation":
        names = _training_sets(task, arguments)
    if arguments.eval_dataset is not None:
        names = arguments.eval_dataset.split(";")
    found = {}
    for name in names:
        rows = sources.read_rows(name, split, data_folder(arguments), split == "validation")
        found[name] = some(rows, arguments.max_n_eval_example, EVALUATION_SEED)
    return found


def _training_sets(task: Task, arguments: Arguments) -> Sequence[str]:
    given = arguments.train_dataset
    return task.train if given is None else given.split(";")


def some(rows: list[dict[str, str]], count: int | None, seed: int) -> list[dict[str, str]]:
    """So many random rows; all of them without a count."""
    if count is None or count >= len(rows):
        return rows
    return random.Random(seed).sample(rows, count)
