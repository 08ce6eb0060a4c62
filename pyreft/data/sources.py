"""The sources of rows: files, directories, the Hub, memory -> a `datasets.Dataset`."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pandas as pd
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from pyreft.annotations import Arguments

# Rows in memory, and rows by split.
InMemory: TypeAlias = (
    "Dataset | pd.DataFrame | Sequence[Mapping[str, object]] | Mapping[str, InMemory]"
)

# The loader of each kind of file and its settings. In a table an empty cell, "NA" and "null" are
# text like any other; in tab-separated files a quotation mark is text as well.
_TABLE = {"keep_default_na": False}
_BY_SUFFIX: dict[str, tuple[str, Arguments]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", _TABLE),
    ".tsv": ("csv", {"sep": "\t", "quoting": csv.QUOTE_NONE, **_TABLE}),
    ".parquet": ("parquet", {}),
}


def load_rows(task: str | None, data_path: str | os.PathLike[str] | None, split: str) -> Dataset:
    """Load a data set from a file, a directory or the Hub.

    Args:
        task: Name of a data set on the Hub, or a directory or file; not read if `data_path` is a
            path.
        data_path: A JSON, JSON lines, CSV, TSV or Parquet file, by its suffix; a directory of
            such files; or the name of a configuration of the data set `task`.
        split: Which split of a data set; a file is one split.

    Raises:
        FileNotFoundError: If a name that can only be a path does not exist. The Hub is not
            searched for it.
        ValueError: If no data is given, or a file is of another kind or cannot be read.
    """
    named = task if data_path is None else os.fspath(data_path)
    if named is None:
        raise ValueError("there is no data: pass dataset=, data_path= or the name of a data set.")
    is_path = isinstance(data_path, os.PathLike) or _looks_like_path(named, data_path is None)
    if not is_path:
        return load_dataset(task, None if data_path is None else named, split=split)
    path = Path(named).expanduser()
    if path.is_dir():
        return load_dataset(str(path), split=split)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or directory {named!r}.")
    if path.suffix.lower() not in _BY_SUFFIX:
        raise ValueError(
            f"cannot tell what {named!r} holds: files end in {', '.join(_BY_SUFFIX)}. Load it "
            "yourself, and pass the rows as dataset=."
        )
    loader, settings = _BY_SUFFIX[path.suffix.lower()]
    try:
        return load_dataset(loader, data_files=str(path), split="train", **settings)
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read {named!r} as {loader}: {error.__cause__}") from error


def as_rows(dataset: InMemory, split: str) -> Dataset:
    """Rows in memory as a `datasets.Dataset`.

    Args:
        dataset: A `datasets.Dataset`, a dict of them by split, a pandas frame, or a list of dicts.
        split: Which split to take of a dict.

    Raises:
        TypeError: If it is something else, or a stream.
        ValueError: If there is no such split.
    """
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(f"there is no split {split!r}; the data set has {list(dataset)}.")
        dataset = dataset[split]
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "this data set keeps its rows in memory, and cannot read a stream: use "
            "pyreft.make_examples, which tokenizes a stream as it comes, or dataset.take(n)."
        )
    if isinstance(dataset, pd.DataFrame):
        return Dataset.from_pandas(dataset, preserve_index=False)
    if isinstance(dataset, Sequence) and all(isinstance(row, Mapping) for row in dataset):
        # Columns of every row: datasets takes those of the first.
        columns = dict.fromkeys(name for row in dataset for name in row)
        return Dataset.from_dict({name: [row.get(name) for row in dataset] for name in columns})
    raise TypeError(
        "dataset is a datasets.Dataset, a pandas DataFrame or a list of dicts, got "
        f"{type(dataset).__name__}."
    )


def _looks_like_path(name: str, is_task: bool) -> bool:
    """Whether a name can only be a path: one on the Hub has at most one slash and no suffix."""
    return (
        name.startswith((".", "/", "~"))
        or name.replace(os.sep, "/").count("/") > int(is_task)
        or Path(name).suffix.lower() in _BY_SUFFIX
        or Path(name).is_file()
    )
