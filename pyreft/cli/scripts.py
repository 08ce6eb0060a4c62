"""Parse scripts and cells of notebooks, with the offsets of their tokens; none is run."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from bisect import bisect_left
from dataclasses import dataclass, field

_SKIPPED = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)?")
# Cells that IPython runs as Python, unlike `%%bash` and others.
_PYTHON_CELL = re.compile(r"%%(time|timeit|capture|prun)\b")
_MAGIC = re.compile(r"(\s*)(?:[%!?].*|[\w.\[\]'\"%]+\?{1,2})\s*$")
_ASSIGNED_MAGIC = re.compile(r"(\s*[\w, ]+=\s*)[%!].*$")


@dataclass
class Token:
    """A token, and the offsets at which it begins and ends."""

    start: int
    end: int
    string: str


@dataclass
class Piece:
    """A script, or one cell of a notebook."""

    where: str
    """The location in messages, before the line: the path, or the path and the cell."""
    text: str
    tree: ast.Module
    lines: list[str]
    """The lines as they were parsed: magics are replaced."""
    starts: list[int]
    tokens: list[Token] = field(default_factory=list)
    f_strings: list[tuple[int, int]] = field(default_factory=list)
    """The offsets of f-strings. Nothing is edited inside: Python 3.10 and 3.11 do not have the
    offsets of the expressions in them."""

    def offset(self, line: int, column: int) -> int:
        """The offset in the text of a line and a column in bytes, as `ast` counts them."""
        text = self.lines[line - 1]
        return self.starts[line - 1] + len(text.encode()[:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        """The offsets at which a node begins and ends in the text."""
        place = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return self.offset(*place[:2]), self.offset(*place[2:])

    def source(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def line(self, offset: int) -> int:
        """The number of the line that an offset is in, from 1."""
        return max(number for number, start in enumerate(self.starts, 1) if start <= offset)

    def before(self, offset: int) -> Token:
        """The last token that ends at an offset or before it."""
        return self.tokens[bisect_left(self.tokens, offset + 1, key=lambda token: token.end) - 1]

    def after(self, offset: int) -> Token:
        """The first token that begins at an offset or after it."""
        return self.tokens[bisect_left(self.tokens, offset, key=lambda token: token.start)]


def parse(where: str, text: str, notebook: bool = False) -> Piece | None:
    """Parse a script or a cell. A cell in another language than Python is None.

    Raises:
        ValueError: If it is not Python. The message names the line.
    """
    lines = [line for line in _LINE.findall(text) if line]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    parsed = lines
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        masked = _mask(lines) if notebook else lines
        if masked is None:
            return None
        if masked == lines:
            raise ValueError(_describe(where, error)) from error
        try:
            tree = ast.parse("".join(masked))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as second:
            raise ValueError(_describe(where, second)) from second
        parsed = masked
    piece = Piece(where, text, tree, parsed or [""], starts)
    piece.tokens = _tokens(parsed, starts)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            piece.f_strings.append(piece.span(node))
            for inside in ast.walk(node):
                if hasattr(inside, "lineno"):
                    ast.copy_location(inside, node)
    return piece


def _describe(where: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{where}:{error.lineno or 1}: {error.msg}"
    return f"{where}: not Python: {error or type(error).__name__}"


def _tokens(lines: list[str], starts: list[int]) -> list[Token]:
    found = []
    for token in tokenize.generate_tokens(io.StringIO("".join(lines), newline="").readline):
        if token.type not in _SKIPPED:
            (row, column), (end_row, end_column) = token.start, token.end
            start, end = starts[row - 1] + column, starts[end_row - 1] + end_column
            found.append(Token(start, end, token.string))
    return found


def _mask(lines: list[str]) -> list[str] | None:
    """The lines of a cell with its magics replaced, as many as before; None if not Python."""
    masked: list[str] = []
    continued = False
    for number, line in enumerate(lines):
        text = line.rstrip("\r\n")
        end = line[len(text) :]
        if number == 0 and text.startswith("%%"):
            if not _PYTHON_CELL.match(text):
                return None
            masked.append("pass" + end)
        elif continued:
            masked.append(end)
        elif found := _ASSIGNED_MAGIC.match(text):
            masked.append(found[1] + "None" + end)
        elif found := _MAGIC.match(text):
            masked.append(found[1] + "pass" + end)
        else:
            masked.append(line)
            continue
        continued = text.endswith("\\")
    return masked
