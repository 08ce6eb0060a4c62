"""Edits of a text that keep its formatting and comments."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from pyreft.cli.scripts import Piece

_F_STRING = (
    "what this f-string needs is not edited: write the expression before it, and run this again"
)


@dataclass(frozen=True)
class Edit:
    """The characters from `start` to `end` become `text`."""

    start: int
    end: int
    text: str = ""


@dataclass(frozen=True)
class Note:
    """What a user must decide, and the offset of the code in question."""

    offset: int
    text: str


@dataclass
class Edits:
    """The edits and notes of one piece."""

    piece: Piece
    edits: set[Edit] = field(default_factory=set)
    notes: set[Note] = field(default_factory=set)

    def replace(self, start: int, end: int, text: str) -> None:
        """Replace the characters from `start` to `end`; inside an f-string, add a note instead."""
        if not self._note_f_string(start):
            self.edits.add(Edit(start, end, text))

    def _note_f_string(self, offset: int) -> bool:
        """Add a note if an offset is in an f-string. Returns whether it is."""
        for first, last in self.piece.f_strings:
            if first <= offset < last:
                self.notes.add(Note(first, _F_STRING))
                return True
        return False

    def replace_node(self, node: ast.AST, text: str) -> None:
        """Replace a node."""
        self.replace(*self.piece.span(node), text)

    def rename(self, node: ast.AST, old: str, new: str) -> None:
        """Replace the name that a node begins with: an argument's, an alias's."""
        start, _ = self.piece.span(node)
        self.replace(start, start + len(old), new)

    def note(self, node: ast.AST, text: str) -> None:
        """Add a note about a node."""
        self.notes.add(Note(self.piece.span(node)[0], text))

    def insert_line_before(self, statement: ast.stmt, line: str) -> None:
        """Put a statement before another one, with its indentation."""
        start, _ = self.piece.span(statement)
        indentation = self.piece.text[self.piece.starts[statement.lineno - 1] : start]
        follows = "; " if indentation.strip() else self._newline() + indentation
        self.replace(start, start, line + follows)

    def insert_after(self, first: ast.AST, last: ast.AST, item: str, closing: int) -> None:
        """Put an item after another one of a list with commas, on a new line if the other has one.

        Args:
            first: The node that the other item begins with.
            last: The node that it ends with.
            item: The text of the new item.
            closing: The offset of the closing bracket of the list.
        """
        (start, _), (_, end) = self.piece.span(first), self.piece.span(last)
        while self.piece.after(end).string == ")" and self.piece.after(end).start < closing:
            end = self.piece.after(end).end
        number = self.piece.line(start)
        before = self.piece.text[self.piece.starts[number - 1] : start]
        separator = ", " if before.strip() else f",{self._newline()}{before}"
        self.replace(end, end, separator + item)

    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self.piece.text else "\n"

    def remove_items(self, items: list[ast.AST], removed: list[ast.AST]) -> None:
        """Remove items from a list with commas: arguments of a call, names of an import.

        Args:
            items: All items, in the order of the text.
            removed: Those to remove.
        """
        run: list[ast.AST] = []
        for item in [*items, None]:
            if item is not None and item in removed:
                run.append(item)
            elif run:
                self._remove(self.piece.span(run[0])[0], self.piece.span(run[-1])[1])
                run = []

    def _remove(self, start: int, end: int) -> None:
        if self._note_f_string(start):
            return
        text, before, after = self.piece.text, self.piece.before(start), self.piece.after(end)
        line_start = self.piece.starts[self.piece.line(start) - 1]
        if after.string == ",":
            end = after.end
            number = self.piece.line(end)
            line_end = self.piece.starts[number]
            rest = text[end:line_end]
            if not text[line_start:start].strip() and rest.lstrip()[:1] in ("", "#"):
                start, end = line_start, line_end
            elif not rest.strip():
                start = line_start + len(text[line_start:start].rstrip())
            else:
                end += len(rest) - len(rest.lstrip())
        elif before.string == "," and "#" not in text[before.end : start]:
            start = before.start
        self.replace(start, end, "")

    def apply(self) -> str:
        """The text with the edits. An edit inside another one is dropped."""
        parts, position = [], 0
        for edit in self._outermost():
            parts += [self.piece.text[position : edit.start], edit.text]
            position = edit.end
        return "".join([*parts, self.piece.text[position:]])

    def new_line(self, offset: int) -> int:
        """The line of an offset in the text with the edits."""
        line = self.piece.line(offset)
        for edit in self._outermost():
            if edit.end <= offset:
                removed = self.piece.text[edit.start : edit.end]
                line += edit.text.count("\n") - removed.count("\n")
        return line

    def _outermost(self) -> list[Edit]:
        kept: list[Edit] = []
        # An insertion comes before an edit that begins at the same offset.
        inserted_first = sorted(
            self.edits, key=lambda e: (e.start, e.end > e.start, -e.end, e.text)
        )
        for edit in inserted_first:
            if not kept or edit.start >= kept[-1].end:
                kept.append(edit)
        return kept
