"""Tables for terminals and notebooks, and untrusted text in either.

Colours of notebooks differ, light and dark. So text here has the colour of the page, and lines are
drawn in a grey that is visible on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_MAX_TEXT = 100
_CELL = "padding:2px 10px;border-bottom:1px solid rgba(128,128,128,.35);vertical-align:top"
_NUMBER = "font-variant-numeric:tabular-nums;white-space:nowrap"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        head: The title of each column.
        rows: The rows, with a text for each column.
        numbers: Titles of the columns that are aligned to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        return "\n".join(self._line(line, widths) for line in lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        columns = zip(self.head, cells, widths, strict=True)
        aligned = (c.rjust(w) if title in self.numbers else c.ljust(w) for title, c, w in columns)
        return "  ".join(aligned).rstrip()

    def _repr_html_(self) -> str:
        cells = [[escape(text) for text in row] for row in self.rows]
        return html_table(self.head, cells, self.numbers)


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()
) -> str:
    """A table as HTML.

    Args:
        head: The title of each column, as text.
        rows: The rows; each cell is HTML.
        numbers: Titles of the columns that are aligned to the right.
    """
    sides = ["right" if title in numbers else "left" for title in head]
    titles = (
        f'<th style="{_CELL};text-align:{side}">{escape(title)}</th>'
        for title, side in zip(head, sides, strict=True)
    )
    lines = [
        "".join(
            f'<td style="{_CELL};text-align:{side}{f";{_NUMBER}" if side == "right" else ""}">'
            f"{cell}</td>"
            for cell, side in zip(row, sides, strict=True)
        )
        for row in rows
    ]
    body = "".join(f'<tr style="background:none">{line}</tr>' for line in ["".join(titles), *lines])
    return f'<table style="border-collapse:collapse;margin:4px 0">{body}</table>'


def preformatted(text: str) -> str:
    """Text as HTML in which each character has the same width."""
    style = "line-height:1.25;margin:4px 0;background:none;color:inherit;overflow-x:auto"
    return f'<pre style="{style}">{escape(text)}</pre>'


def heading(text: str) -> str:
    """A short text as HTML, in bold, on a line of its own."""
    return f'<div style="font-weight:bold;margin:4px 0">{escape(text)}</div>'


def printable(text: str) -> str:
    """Untrusted text as a line without control characters of a terminal or code of Markdown."""
    kept = "".join(c if c.isprintable() and c != "`" else "?" for c in text[:_MAX_TEXT])
    return kept + ("..." if len(text) > _MAX_TEXT else "")
