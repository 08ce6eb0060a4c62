"""The table of names that other libraries renamed or removed since pyreft 0.1.0.

Each row is compared with the installed releases in tests/test_migrate.py.
"""

from __future__ import annotations

import re

from pyreft.compat import renamed_others, renamed_transformers
from pyreft.compat.rows import Argument, Default, Method, Name, Override, Parameter, Row, Value

ROWS: tuple[Row, ...] = (*renamed_transformers.ROWS, *renamed_others.ROWS)


def rows_of(name: str) -> dict[str, Argument]:
    """The arguments that a callable no longer has, by their names.

    Args:
        name: The dotted name of the callable, which begins with its library.
    """
    library, _, _ = name.partition(".")
    last = name.rpartition(".")[2]
    return {
        row.old: row
        for row in ROWS
        if isinstance(row, Argument) and row.library == library and last in row.callables
    }


def find_name(name: str) -> Name | None:
    """The row of a dotted name that was removed, None if it was not."""
    for row in ROWS:
        if isinstance(row, Name):
            prefix = row.old.removesuffix("*")
            rest = name.removeprefix(prefix)
            if name == row.old or (
                prefix != row.old and rest != name and rest[:1].isupper() and "." not in rest
            ):
                return row
    return None


def table() -> str:
    """The rows as a table in Markdown. Arguments with the same advice share one line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        if cells := _cells(row):
            library, names, now = cells
            lines.setdefault((library, now), []).append(names)
    body = []
    for (library, now), then in lines.items():
        body.append(f"| {library} | {'; '.join(_join(list(dict.fromkeys(then))))} | {now} |")
    return "\n".join(["| library | then | now |", "|---|---|---|", *body])


def _join(then: list[str]) -> list[str]:
    """`f(a=)` and `f(b=)` become `f(a=, b=)`."""
    joined: dict[str, list[str]] = {}
    for text in then:
        call = re.fullmatch(r"`([\w, ]+)\((.+)\)`", text)
        joined.setdefault(call[1] if call else text, []).extend([call[2]] if call else [])
    return [
        f"`{call}({', '.join(arguments)})`" if arguments else call
        for call, arguments in joined.items()
    ]


def _cells(row: Row) -> list[str]:
    """A line of the table; training arguments are listed once, not for TRL's configs again."""
    if isinstance(row, Argument):
        if row.library == "trl" and row.callables[-1] == "CPOConfig":
            return []
        now = f"`{row.new}`" if row.new else row.advice.format(value="...") or "removed"
        now = now.replace(f"write {row.old}=...", "write it")
        if row.then:
            now = f"`{row.new}={row.then}`"
        cells = [row.library, f"`{', '.join(row.callables)}({row.old}=)`", _since(now, row.since)]
    elif isinstance(row, Name):
        library, _, _ = row.old.partition(".")
        cells = [
            library,
            f"`{row.old}`",
            _since(f"`{row.new}`" if row.new else row.advice, row.since),
        ]
    elif isinstance(row, Method):
        call = "call the tokenizer itself"
        library = "pyreft" if row.owner.startswith("reft_model") else "transformers"
        cells = [library, f"`{row.owner}.{row.old}`", row.advice or call]
    elif isinstance(row, Value):
        if row.library == "trl":
            return []
        call = f'`{", ".join(row.callables)}({row.argument}="{row.old}")`'
        now = f'`{row.argument}="{row.new}"`' if row.new else row.advice
        cells = [row.library, call, _since(now, row.since)]
    elif isinstance(row, Default):
        now = f"`{row.argument}={row.value}`, which was the default"
        cells = [row.library, f"`{row.callable}()` without `{row.argument}`", now]
    elif isinstance(row, Override):
        cells = [row.library, f"a `{row.method}` of your own in a `{row.base}`", row.advice]
    else:
        assert isinstance(row, Parameter)
        now = f"takes `{row.parameter}=None` as well"
        cells = ["transformers", f"a `{row.method}` of your own in a `Trainer`", now]
    return cells


def _since(now: str, release: str) -> str:
    return f"{now} (since {release})" if release else now
