"""What is typed or uploaded becomes pairs to train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyreft.data.sources import load_rows

# Rows of a file that are shown and trained on here.
MAX_ROWS = 2000
_COLUMNS = ("prompt", "completion")


def read_pairs(rows: Sequence[Sequence[object]]) -> list[tuple[str, str]]:
    """The rows of a table that are filled in.

    Args:
        rows: Prompt and answer of each.

    Raises:
        ValueError: If one half of a row is empty.
    """
    pairs = []
    for number, row in enumerate(rows, 1):
        prompt, answer = ("" if cell is None else str(cell).strip() for cell in row[:2])
        if bool(prompt) != bool(answer):
            empty = "answer" if prompt else "prompt"
            raise ValueError(f"row {number} has no {empty}: fill it in, or empty the row.")
        if prompt:
            pairs.append((prompt, answer))
    return pairs


def read_file(path: str) -> list[list[str]]:
    """The rows of a file: prompt and answer of each.

    Raises:
        ValueError: If it cannot be read, has too many rows, or not the columns prompt and
            completion.
    """
    rows = load_rows(None, Path(path), "train")
    if not set(_COLUMNS) <= set(rows.column_names):
        raise ValueError(
            f"the file has the columns {', '.join(rows.column_names)}: it needs prompt and "
            "completion."
        )
    if len(rows) > MAX_ROWS:
        raise ValueError(
            f"the file has {len(rows):,} rows, and at most {MAX_ROWS:,} are trained on here: use "
            "pyreft train."
        )
    return [[str(row[name]) for name in _COLUMNS] for row in rows]


def read_number(text: str) -> float | None:
    """A learning rate as it is typed; None if nothing is.

    Raises:
        ValueError: If it is not a positive number.
    """
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ValueError(f"the learning rate is a positive number such as 4e-3, got {text!r}.")
    return rate
