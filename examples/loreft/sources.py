"""Rows of data sets, from local folders or the Hub, with the same fields for all.

    generated tasks   instruction, input, output, answer: texts; what a data set does not have is ""
    GLUE              first, second (or none), label

Local folders have the layout of LLM-Adapters (`boolq/train.json`, `boolq/test.json`), of GSM8K
(`gsm8k/train.jsonl`), of MAWPS (`mawps/trainset.json`), or of GLUE (`RTE/train.tsv`). A folder of
the same layout with another data set is read the same way.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, load_dataset

from tasks import GlueTask

# Where data sets are that no local folder has: LLM-Adapters' files, and data sets of the Hub.
LLM_ADAPTERS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
TRAINING_SETS = ("commonsense_170k", "math_10k", "alpaca_data_cleaned")
ULTRAFEEDBACK = "https://raw.githubusercontent.com/frankaging/ultrafeedback-dataset/main/train.json"
ON_HUB = {
    "gsm8k": ("openai/gsm8k", "main"),
    "alpaca_eval": ("tatsu-lab/alpaca_eval", None),
}
FIELDS = ("instruction", "input", "output", "answer")
# A held-out part of the rows to train on, for data sets without a validation set. The paper holds
# out the last 300 rows of GSM8K (appendix C).
HELD_OUT = 300


class DataError(ValueError):
    """Data that is not there, or that lacks a field."""


def read_rows(name: str, part: str, folder: Path | None, validates: bool) -> list[dict[str, str]]:
    """The rows of a data set.

    Args:
        name: Of the data set, which is a folder or a file in `folder`.
        part: "train", "validation" or "test".
        folder: A local folder, or None for the data set's own place on the network.
        validates: Whether the run is evaluated on "validation": without such a file those are the
            last rows of "train", which then has the others.

    Returns:
        Dicts with the fields instruction, input, output and answer.

    Raises:
        DataError: If there is no file of this name, or a row lacks a field.
    """
    where = (name, folder)
    if not validates or part == "test" or _find(*where, "validation"):
        return _read(*where, part)
    rows = _read(*where, "train")
    if len(rows) <= HELD_OUT:
        raise DataError(
            f"{name} has {len(rows)} rows to train on and no validation set; the last {HELD_OUT} "
            "rows would be held out as one. Evaluate on its test set with --test_split test."
        )
    return rows[-HELD_OUT:] if part == "validation" else rows[:-HELD_OUT]


def read_glue(task: GlueTask, part: str, folder: Path | None, name: str) -> Dataset:
    """The rows of a task of GLUE as first, second and label.

    Args:
        task: The task.
        part: "train" or "validation".
        folder: The folder of the tasks' folders, or None for GLUE on the Hub.
        name: The task's name on the Hub.

    Raises:
        DataError: If there is no such file, or a row lacks a field.
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
    with open(file, encoding="utf-8-sig", newline="") as lines:
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        rows = list(csv.DictReader(lines, task.header, **options))
    columns = (*task.texts, task.label)
    if rows and (missing := [c for c in columns if rows[0].get(c) is None]):
        raise DataError(f"{file} has no column {missing[0]!r}; it has {list(rows[0])}.")
    return Dataset.from_list([_glue_row(row, task, file) for row in rows])


def _glue_row(row: dict[str, str], task: GlueTask, file: Path) -> dict[str, object]:
    texts = dict(zip(("first", "second"), (row[name] for name in task.texts), strict=False))
    label = row[task.label]
    if task.labels is None:
        return {**texts, "label": float(label)}
    if label not in task.labels:
        raise DataError(f"{file} has the label {label!r}; {task.folder}'s are {task.labels}.")
    return {**texts, "label": task.labels.index(label)}


# ---- where a file is -------------------------------------------------------------------------


def _candidates(name: str, folder: Path, part: str) -> list[Path]:
    """The files that may hold a part, in the layouts that are known."""
    files = [folder / name / f"{part}{ending}" for ending in (".json", ".jsonl", "set.json")]
    if part == "train":
        files += [folder / f"{name}.json", folder / f"{name}.jsonl", folder / f"{name}_1k.json"]
    if part == "test":
        # A set to evaluate on alone, as alpaca_eval.
        files += [folder / f"{name}.json", folder / name / "eval.json"]
    return files


def _find(name: str, folder: Path | None, part: str) -> Path | None:
    if folder is None:
        return None
    return next((file for file in _candidates(name, folder, part) if file.is_file()), None)


def _read(name: str, folder: Path | None, part: str) -> list[dict[str, str]]:
    if folder is None:
        return [_fields(row, name) for row in _download(name, part)]
    file = _find(name, folder, part)
    if file is None:
        looked = ", ".join(str(f.relative_to(folder)) for f in _candidates(name, folder, part))
        raise DataError(f"{folder} has no {part} set of {name}; looked for {looked}.")
    rows = Dataset.from_json(str(file))
    return [_fields(row, f"{file}, row {index}") for index, row in enumerate(rows)]


def _download(name: str, part: str) -> Iterable[dict]:
    if name in ON_HUB:
        path, config = ON_HUB[name]
        split = {"alpaca_eval": "eval"}.get(name, part)
        return load_dataset(path, config, split=split)
    file = f"{LLM_ADAPTERS}/dataset/{name}/{part}.json"
    if name in TRAINING_SETS:
        file = f"{LLM_ADAPTERS}/ft-training_set/{name}.json"
    if name == "ultrafeedback":
        file = ULTRAFEEDBACK
    return load_dataset("json", data_files=file, split="train")


# ---- what a row has --------------------------------------------------------------------------


def _fields(row: dict, where: str) -> dict[str, str]:
    """The fields of a row, of whichever layout it is."""
    if "question" in row and "answer" in row:
        return _of_gsm8k(row)
    if {"original_text", "equation", "ans"} <= set(row):
        return _of_mawps(row)
    if not row.get("instruction"):
        filled = sorted(name for name, value in row.items() if value is not None)
        raise DataError(
            f"{where} has the fields {filled}; needed are instruction and output or answer, or "
            "those of GSM8K (question, answer) or MAWPS (original_text, equation, ans)."
        )
    found = {name: str(row.get(name) or "") for name in FIELDS}
    # LLM-Adapters' texts begin or end with white space here and there; the paper strips them.
    return {name: text.strip() for name, text in found.items()}


def _of_gsm8k(row: dict) -> dict[str, str]:
    """The steps, and after "####" the final number."""
    steps, _, number = row["answer"].partition("####")
    output = f"{steps}The final answer is: {number.strip()}"
    return {
        "instruction": row["question"].strip(),
        "input": "",
        "output": output,
        "answer": number.strip().replace(",", ""),
    }


def _of_mawps(row: dict) -> dict[str, str]:
    """An equation, which is trained on in front of its result."""
    answer = f"{row['ans']:.10g}"
    output = f"{row['equation'].replace(' ', '')}. The answer is {answer}."
    text = row["original_text"].strip()
    return {"instruction": text, "input": "", "output": output, "answer": answer}
