"""The files of `pyreft migrate`: scripts and notebooks are read, compared and written."""

from __future__ import annotations

import difflib
import io
import json
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyreft.annotations import Arguments, Json
from pyreft.cli.migration import migrate
from pyreft.cli.script_edits import Edits
from pyreft.cli.scripts import Piece, parse


@dataclass
class File:
    """A file before and after its edits."""

    path: Path
    encoding: str
    old: str
    new: str
    edits: list[Edits]

    def diff(self) -> str:
        """A unified diff, empty if nothing changes."""
        lines = difflib.unified_diff(
            _lines(self.old), _lines(self.new), str(self.path), str(self.path)
        )
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in lines
        )

    def notes(self, written: bool) -> Iterator[str]:
        """What users must decide, with line numbers before or after the edits."""
        for edits in self.edits:
            for note in sorted(edits.notes, key=lambda note: (note.offset, note.text)):
                piece = edits.piece
                line = edits.new_line(note.offset) if written else piece.line(note.offset)
                yield f"{piece.where}:{line}: {note.text}\n"


def migrate_files(paths: Sequence[Path], write: bool = False) -> Iterator[str]:
    """Compare scripts and notebooks with the table of renamed names.

    Args:
        paths: Files that end in .py or .ipynb.
        write: Whether to apply the edits. No file is written if one of them has an error.

    Yields:
        The text to print: a diff or the files that were written, then the notes.

    Raises:
        ValueError: If a file is not Python or not a notebook. The message names file and line.
        OSError: If a file cannot be read or written.
    """
    files = [read_file(path) for path in dict.fromkeys(paths)]
    notes: list[str] = []
    changed = False
    for file in files:
        if file.new != file.old:
            changed = True
            if write:
                _write(file)
                yield f"{file.path} is written.\n"
            else:
                yield file.diff()
        notes += file.notes(written=write)
    if notes and changed:
        yield "\n"
    yield from notes
    if not notes and not changed:
        yield "nothing to change\n"


def read_file(path: Path) -> File:
    """Read a script or notebook and find its edits."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory: name the scripts in it.")
    if not path.exists():
        raise ValueError(f"there is no file {str(path)!r}.")
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        return _notebook(path, _decode(path, content, "utf-8"))
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError as error:
        raise ValueError(f"{path}:1: not Python: {error.msg}") from error
    text = _decode(path, content, encoding)
    piece = parse(str(path), text)
    assert piece is not None
    edits = migrate([piece])
    return File(path, encoding, text, _apply(edits[0]), edits)


def _decode(path: Path, content: bytes, encoding: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not a text in {encoding}.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line}: a binary file, not a script.")
    return text


def _apply(edits: Edits, notebook: bool = False) -> str:
    """The text with the edits, which must still be Python."""
    text = edits.apply()
    if text != edits.piece.text:
        parse(f"{edits.piece.where}, as edited", text, notebook)
    return text


def _notebook(path: Path, text: str) -> File:
    try:
        notebook: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}:{line}: not a notebook: {error}") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError(f"{path}:1: not a notebook of version 4: it has no list of cells.")
    pieces: list[Piece] = []
    of_pieces: list[Json] = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        source = "".join(source) if isinstance(source, list) else source
        if not isinstance(source, str):
            raise ValueError(f"{path}:1: not a notebook: the source of cell {number} is not text.")
        piece = parse(f"{path}, cell {number}", source, notebook=True)
        if piece is not None:
            pieces.append(piece)
            of_pieces.append(cell)
    edits = migrate(pieces)
    new = text
    layout = _layout(text, notebook)
    for cell, found in zip(of_pieces, edits, strict=True):
        source = _apply(found, notebook=True)
        if source != found.piece.text:
            cell["source"] = _lines(source) if isinstance(cell["source"], list) else source
            new = _dump(notebook, layout) + text[len(text.rstrip()) :]
    return File(path, "utf-8", text, new, edits)


def _dump(notebook: object, layout: Arguments) -> str:
    return json.dumps(notebook, **layout)


def _layout(text: str, notebook: object) -> Arguments:
    """The arguments of `json.dumps` that reproduce the file; Jupyter's own if none do."""
    layouts: list[Arguments] = [
        {"indent": indent, "ensure_ascii": ascii_only}
        for indent in (1, 2, 4, "\t", None)
        for ascii_only in (False, True)
    ]
    fits = (layout for layout in layouts if _dump(notebook, layout) == text.rstrip())
    return next(fits, layouts[0])


def _lines(text: str) -> list[str]:
    """The lines with their ends, split at newlines alone, as `patch` does."""
    parts = text.split("\n")
    lines = [part + "\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _write(file: File) -> None:
    """Replace a file atomically. A link stays a link, and permissions are kept."""
    path = file.path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.new.encode(file.encoding))
            stream.flush()
            os.fsync(stream.fileno())
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
