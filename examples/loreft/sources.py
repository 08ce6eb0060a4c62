"""Rows of data sets, from local folders or downloaded, with the same fields for all.

    generated tasks   instruction, input, output, answer: texts; what a data set does not have is ""
    GLUE              first, second (or none), label: see glue_rows.py

Local folders have the layout of LLM-Adapters (`boolq/train.json`, `boolq/test.json`), of GSM8K
(`gsm8k/train.jsonl`) or of MAWPS (`mawps/trainset.json`). A folder of the same layout with another
data set is read the same way.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from datasets import load_dataset

# Where data sets are that no local folder has: LLM-Adapters' files, and those of others.
LLM_ADAPTERS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
TRAINING_SETS = ("commonsense_170k", "math_10k", "alpaca_data_cleaned")
ELSEWHERE = {
    "ultrafeedback": "https://raw.githubusercontent.com/frankaging/ultrafeedback-dataset/main/"
    "train.json",
    "alpaca_eval": "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/main/"
    "alpaca_eval.json",
}
GSM8K = ("openai/gsm8k", "main")
FIELDS = ("instruction", "input", "output", "answer")
# A held-out part of the rows to train on, for data sets without a validation set. The paper holds
# out the last 300 rows of GSM8K (appendix C).
HELD_OUT = 300


class DataError(ValueError):
    """A missing data file or field."""


def read_rows(name: str, part: str, folder: Path | None, validates: bool) -> list[dict[str, str]]:
    """The rows of a data set.

    Args:
        name: Of the data set, which is a folder or a file in `folder`.
        part: "train", "validation" or "test".
        folder: A local folder, or None to download.
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


def require_fields(rows: Iterable[dict[str, str]], names: Iterable[str], where: str) -> None:
    """Check that every row has these fields.

    Raises:
        DataError: If one does not, with its number.
    """
    names = [name for name in names if name != "input"]
    for index, row in enumerate(rows):
        if missing := [name for name in names if not row[name]]:
            raise DataError(f"row {index} of {where} has no {' and no '.join(missing)}.")


# ---- where a file is -------------------------------------------------------------------------


def _candidates(name: str, folder: Path, part: str) -> list[Path]:
    """The files that may hold a part, in the layouts that are known."""
    files = [folder / name / f"{part}{ending}" for ending in (".json", ".jsonl", "set.json")]
    if part == "validation":
        files.append(folder / name / "validset.json")
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
    file = _find(name, folder, part)
    # Upstream always downloads what all instruction tasks are evaluated on.
    if file is None and (folder is None or name == "alpaca_eval"):
        return _convert(_download(name, part), name)
    if file is None:
        assert folder is not None
        looked = ", ".join(str(f.relative_to(folder)) for f in _candidates(name, folder, part))
        raise DataError(f"{folder} has no {part} set of {name}; looked for {looked}.")
    return _convert(_parse(file), str(file))


def _parse(file: Path) -> list[dict]:
    """The rows of a JSON or JSON lines file, whatever its name ends in."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] == "[":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} must hold rows, each with fields by name.")
    return rows


def _download(name: str, part: str) -> Iterable[dict]:
    if name == "gsm8k":
        path, config = GSM8K
        return load_dataset(path, config, split=part)
    file = f"{LLM_ADAPTERS}/dataset/{name}/{part}{'set' if name == 'mawps' else ''}.json"
    if name in TRAINING_SETS:
        file = f"{LLM_ADAPTERS}/ft-training_set/{name}.json"
    return load_dataset("json", data_files=ELSEWHERE.get(name, file), split="train")


# ---- what a row has --------------------------------------------------------------------------


def _convert(rows: Iterable[dict], where: str) -> list[dict[str, str]]:
    found = []
    for index, row in enumerate(rows):
        try:
            found.append(_fields(row))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"row {index} of {where} cannot be read: {error}") from error
    return found


def _fields(row: dict) -> dict[str, str]:
    """Convert a row of any known layout."""
    if "question" in row and "answer" in row:
        return _of_gsm8k(row)
    if {"original_text", "equation", "ans"} <= set(row):
        return _of_mawps(row)
    if not row.get("instruction"):
        filled = sorted(name for name, value in row.items() if value is not None)
        raise ValueError(
            f"it has the fields {filled}; needed are instruction and output or answer, or those of "
            "GSM8K (question, answer) or MAWPS (original_text, equation, ans)"
        )
    # LLM-Adapters' texts begin or end with white space here and there; the paper strips them.
    return {name: _text(row.get(name)).strip() for name in FIELDS}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _of_gsm8k(row: dict) -> dict[str, str]:
    """The steps, and after "####" the final number."""
    steps, mark, number = row["answer"].partition("####")
    if not mark:
        raise ValueError('its answer has no "####" before a final number')
    return {
        "instruction": row["question"].strip(),
        "input": "",
        "output": f"{steps}The final answer is: {number.strip()}",
        "answer": number.strip().replace(",", ""),
    }


def _of_mawps(row: dict) -> dict[str, str]:
    """An equation, which is trained on in front of its result."""
    answer = f"{float(row['ans']):.10g}"
    output = f"{row['equation'].replace(' ', '')}. The answer is {answer}."
    text = row["original_text"].strip()
    return {"instruction": text, "input": "", "output": output, "answer": answer}
