"""Rows of GLUE's tasks, from files in GLUE's own layout (`RTE/train.tsv`) or from the Hub."""

import csv
import sys
import warnings
from pathlib import Path

from datasets import Dataset, load_dataset

from sources import DataError
from tasks import GlueTask


def read_glue(name: str, part: str, folder: Path | None, task: GlueTask) -> Dataset:
    """The rows of a task as first, second and label.

    Args:
        name: The task's name on the Hub.
        part: "train" or "validation".
        folder: The folder of the tasks' folders, or None to download.
        task: The task.

    Raises:
        DataError: If there is no such file, or a label is none of the task's.
    """
    if folder is None:
        split = "validation_matched" if (name, part) == ("mnli", "validation") else part
        rows = load_dataset("nyu-mll/glue", name, split=split)
        columns = [c for c in rows.column_names if c not in ("label", "idx")]
        names = dict(zip(columns, ("first", "second"), strict=False))
        return rows.rename_columns(names).select_columns([*names.values(), "label"])
    file = folder / task.folder / ("train.tsv" if part == "train" else task.dev)
    if not file.is_file():
        raise DataError(f"there is no {file}, the {part} set of {name} in GLUE's own layout.")
    csv.field_size_limit(sys.maxsize)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        rows = list(csv.DictReader(lines, task.header, **options))
    columns = (*task.texts, task.label)
    if rows and (missing := [c for c in columns if c not in rows[0]]):
        raise DataError(f"{file} has no column {missing[0]!r}; it has {list(rows[0])}.")
    whole = [row for row in rows if all(row[column] is not None for column in columns)]
    if len(whole) < len(rows):
        # As transformers' reader of the published QQP does.
        warnings.warn(
            f"{len(rows) - len(whole)} of {len(rows)} rows of {file} are left out: they have fewer "
            "columns.",
            stacklevel=2,
        )
    if not whole:
        raise DataError(f"{file} has no rows.")
    return Dataset.from_list([_row(row, task, f"{file}, row {i}") for i, row in enumerate(whole)])


def _row(row: dict[str, str], task: GlueTask, where: str) -> dict[str, object]:
    texts = dict(zip(("first", "second"), (row[name] for name in task.texts), strict=False))
    label = row[task.label]
    if task.labels is not None:
        if label not in task.labels:
            raise DataError(f"{where} has the label {label!r}; {task.folder}'s are {task.labels}.")
        return {**texts, "label": task.labels.index(label)}
    try:
        return {**texts, "label": float(label)}
    except ValueError:
        raise DataError(f"{where} has the label {label!r}, which is no number.") from None
