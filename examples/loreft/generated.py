"""Tasks whose answers are generated: training, and the evaluation of every data set."""

import random
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import methods
import pyreft
import sources
import training
import upstream
from arguments import Arguments
from evaluation import Evaluation
from run_folder import data_folder, write
from tasks import TASKS, Task

# The rows that all runs are evaluated on do not depend on their seed.
EVALUATION_SEED = 42
Rows = list[dict[str, str]]


def run(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Train and evaluate; return what eval_results.json holds."""
    task = TASKS[arguments.task]
    tests = read_tests(task, arguments)
    tokenizer = methods.load_tokenizer(arguments)
    base = methods.load_base(arguments, labels=None)
    evaluation = Evaluation(task, tokenizer, arguments)
    development = read_development(task, arguments) if arguments.dev_steps else []
    scored = [*development, *(row for rows in tests.values() for row in rows)]
    if arguments.intervention_type == upstream.NAME:
        rows, dropped = read_training(task, arguments, scored)
        examples = training.make_examples(rows, task, tokenizer, arguments)
        model, found = upstream.train(base, examples, arguments, folder)
        found["dropped"] = dropped
    else:
        method = methods.build(arguments, base)
        model, found = method.model, {"n_params": method.parameters, "head": method.head}
        if method.trains:
            rows, found["dropped"] = read_training(task, arguments, scored)
            examples = training.make_examples(rows, task, tokenizer, arguments)
            callbacks = _callbacks(evaluation, development)
            found |= _train(method, examples, tokenizer, arguments, folder, callbacks)
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


def _train(
    method: methods.Method,
    examples: Any,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Arguments,
    folder: Path,
    callbacks: list[Any],
) -> dict[str, Any]:
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer)
    where = (arguments, folder / "trainer", collator, callbacks)
    trainer = training.train(method, tokenizer, examples, *where)
    return training.describe(trainer, method, arguments, folder)


def _callbacks(evaluation: Evaluation, development: Rows) -> list[Any]:
    clock = training.ClockCallback()
    if not development:
        return [clock]

    def score(model: Any) -> float:
        found = evaluation.run(model, development, None, "development")[0].score
        assert found is not None
        return found

    return [clock, training.DevelopmentCallback(score, evaluation.arguments.dev_steps, clock)]


# ---- rows --------------------------------------------------------------------------------------


def read_training(task: Task, arguments: Arguments, scored: Rows) -> tuple[Rows, int]:
    """The rows to train on, and how many were dropped because their question is scored.

    Args:
        task: The task.
        arguments: Of the run.
        scored: Rows that the run is evaluated on.
    """
    holds_out = arguments.dev_steps > 0 or _validates(task, arguments)
    where = (data_folder(arguments), holds_out)
    names = _training_sets(task, arguments)
    rows = [row for name in names for row in sources.read_rows(name, "train", *where)]
    sources.require_fields(rows, _fields_of(task.completion), f"the training set of {names}")
    known = {_question(row) for row in scored}
    kept = [row for row in rows if _question(row) not in known]
    if dropped := len(rows) - len(kept):
        print(f"{dropped} of {len(rows)} training rows are dropped: their questions are scored.")
    if not kept:
        raise sources.DataError(f"no row of {names} is left to train on.")
    return some(kept, arguments.max_n_train_example, arguments.seed), dropped


def read_tests(task: Task, arguments: Arguments) -> dict[str, Rows]:
    """Data set -> the rows to evaluate on.

    Without `eval_dataset` those are the task's; of the split "validation", the training sets'.
    What is not scored has a test set alone.
    """
    split = arguments.test_split
    if split not in ("validation", "test"):
        raise ValueError(f"test_split is validation or test, got {split!r}.")
    validates = _validates(task, arguments)
    names = _training_sets(task, arguments) if validates else task.tests
    if arguments.eval_dataset is not None:
        names = arguments.eval_dataset.split(";")
    found = {}
    for name in names:
        part = "validation" if validates else "test"
        rows = sources.read_rows(name, part, data_folder(arguments), validates)
        if task.answer is not None:
            sources.require_fields(rows, ["answer"], f"the {part} set of {name}")
        found[name] = some(rows, arguments.max_n_eval_example, EVALUATION_SEED)
    return found


def read_held_out(task: Task, arguments: Arguments) -> dict[str, Rows]:
    """Data set -> its validation set, or held-out training rows, of every training set."""
    where = (data_folder(arguments), True)
    names = _training_sets(task, arguments)
    return {name: sources.read_rows(name, "validation", *where) for name in names}


def read_development(task: Task, arguments: Arguments) -> Rows:
    """The rows that are scored while the model is trained.

    Raises:
        ValueError: If the task's answers are not scored.
    """
    if task.answer is None:
        raise ValueError(f"the answers of {arguments.task} have no score: leave out --dev_steps.")
    found = read_held_out(task, arguments).values()
    count = arguments.max_n_dev_example
    return [row for rows in found for row in some(rows, count, EVALUATION_SEED)]


def some(rows: Rows, count: int | None, seed: int) -> Rows:
    """So many random rows; all of them without a count."""
    if count is None or count >= len(rows):
        return rows
    return random.Random(seed).sample(rows, count)


def _validates(task: Task, arguments: Arguments) -> bool:
    return task.answer is not None and arguments.test_split == "validation"


def _training_sets(task: Task, arguments: Arguments) -> Sequence[str]:
    given = arguments.train_dataset
    return task.train if given is None else given.split(";")


def _fields_of(template: str) -> Iterable[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def _question(row: dict[str, str]) -> str:
    """A question without what differs between copies of it: case, spaces, punctuation."""
    return re.sub(r"[^a-z0-9]", "", f"{row['instruction']}{row['input']}".lower())
