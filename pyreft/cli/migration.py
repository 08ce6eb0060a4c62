"""Script -> edits and notes, according to the table of renamed names."""

from __future__ import annotations

import ast

from pyreft.cli.migrated_calls import Calls, describe
from pyreft.cli.script_edits import Edits
from pyreft.cli.script_names import Names
from pyreft.cli.scripts import Piece
from pyreft.compat.renamed import ROWS, find_name, rows_of
from pyreft.compat.rows import Method, Override, Parameter

_METHODS = {row.old: row for row in ROWS if isinstance(row, Method)}
_PARAMETERS = {row.method: row.parameter for row in ROWS if isinstance(row, Parameter)}
_OVERRIDES = [row for row in ROWS if isinstance(row, Override)]
_TRAINERS = ("transformers.", "pyreft.", "trl.")


def migrate(pieces: list[Piece]) -> list[Edits]:
    """The edits and notes of pieces of one script: the script, or the cells of a notebook."""
    names = Names(piece.tree for piece in pieces)
    return [_Migration(piece, names).run() for piece in pieces]


class _Migration:
    """The edits of one piece. Its names are resolved with all pieces."""

    def __init__(self, piece: Piece, names: Names) -> None:
        self.piece, self.names = piece, names
        self.edits = Edits(piece)
        self.calls = Calls(self.edits, names)

    def run(self) -> Edits:
        for node in ast.walk(self.piece.tree):
            if isinstance(node, ast.ImportFrom) and node not in self.names.guarded:
                self._import_from(node)
            elif isinstance(node, ast.Import) and node not in self.names.guarded:
                self._import(node)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self._name(node)
            elif isinstance(node, ast.Attribute):
                self._attribute(node)
            elif isinstance(node, ast.Call):
                self.calls.migrate(node)
            elif isinstance(node, ast.ClassDef):
                self._class(node)
        return self.edits

    # ---- imports and names -----------------------------------------------------------------------

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            if row := find_name(alias.name):
                self.edits.note(alias, _gone(alias.name, row.new, row.advice))

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            return
        moved: list[ast.AST] = []
        lines: list[str] = []
        for alias in node.names:
            row = find_name(f"{module}.{alias.name}")
            if row is None:
                continue
            if not row.new or not self._is_bound_once(alias):
                self.edits.note(alias, _gone(row.old, row.new, row.advice))
                continue
            new_module, _, text = row.new.rpartition(".")
            if alias.asname or (self.names.binds(text) and text != alias.name):
                text += f" as {alias.asname or alias.name}"
            if new_module == module:
                self.edits.replace_node(alias, text)
            else:
                moved.append(alias)
                lines.append(f"from {new_module} import {text}")
        if moved and len(moved) == len(node.names):
            first, *rest = lines
            self.edits.replace_node(node, first)
            lines = rest
        elif moved:
            self.edits.remove_items(list(node.names), moved)
        for line in lines:
            self.edits.insert_line_before(node, line)
        parts = module.split(".")
        above = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        row = next(filter(None, map(find_name, above)), None)
        if row is not None and not moved:
            if row.new and row.old == module:
                name = self.piece.after(self.piece.span(node)[0] + len("from"))
                self.edits.replace(name.start, name.start + len(module), row.new)
            else:
                self.edits.note(node, _gone(row.old, row.new, row.advice))

    def _is_bound_once(self, alias: ast.alias) -> bool:
        name = alias.asname or alias.name
        return len(self.names.imports.get(name, ())) == 1 and name not in self.names.others

    def _name(self, node: ast.Name) -> None:
        """Edit a use of an imported name that was renamed."""
        if len(imported := self.names.imports.get(node.id, set())) != 1:
            return
        row = find_name(next(iter(imported)))
        if row is None or not row.new or self.names.resolve(node) != row.old:
            return
        old, new = row.old.rpartition(".")[2], row.new.rpartition(".")[2]
        if node.id == old != new and not self.names.binds(new) and not self._is_guarded(old):
            self.edits.replace_node(node, new)

    def _is_guarded(self, name: str) -> bool:
        return any(
            isinstance(node, ast.ImportFrom)
            and any((alias.asname or alias.name) == name for alias in node.names)
            for node in self.names.guarded
        )

    def _attribute(self, node: ast.Attribute) -> None:
        dotted = self.names.resolve(node)
        if dotted:
            row = find_name(dotted)
            if row is None or self.names.resolve(node.value) is None:
                return
            owner, _, new_name = row.new.rpartition(".")
            if row.new and owner == row.old.rpartition(".")[0]:
                _, end = self.piece.span(node)
                self.edits.replace(end - len(node.attr), end, new_name)
            elif self.names.imports.get(root := row.new.partition(".")[0]) == {root}:
                self.edits.replace_node(node, row.new)
            else:
                self.edits.note(node, _gone(row.old, row.new, row.advice))
        elif self.calls.is_method(node):
            row_of_method = _METHODS[node.attr]
            if row_of_method.advice:
                self.edits.note(node, f"{node.attr} is gone: {row_of_method.advice}")
            else:
                _, end = self.piece.span(node)
                name = self.piece.before(end)
                self.edits.replace(self.piece.before(name.start).start, end, "")
        else:
            self._attribute_of_instance(node)

    def _attribute_of_instance(self, node: ast.Attribute) -> None:
        """Edit `args.evaluation_strategy` of a variable that is `TrainingArguments(...)`."""
        made_by = self.names.made_by(node.value)
        if made_by is None or node.attr in self.names.fields(made_by):
            return
        row = rows_of(self.names.resolve(made_by) or "").get(node.attr)
        if row is None or row.keep:
            return
        if row.new and not row.then:
            _, end = self.piece.span(node)
            self.edits.replace(end - len(node.attr), end, row.new)
        else:
            self.edits.note(node, describe(made_by, row, row.new))

    # ---- classes ---------------------------------------------------------------------------------

    def _class(self, node: ast.ClassDef) -> None:
        base = self.names.base(node, constructor=False) or ""
        if not base.startswith(_TRAINERS) or "Trainer" not in base.rpartition(".")[2]:
            return
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name in _PARAMETERS:
                self._parameter(part, _PARAMETERS[part.name])
            for row in _OVERRIDES:
                if isinstance(part, ast.FunctionDef) and (part.name, base) == (
                    row.method,
                    f"{row.library}.{row.base}",
                ):
                    self.edits.note(part, f"{row.base} has no {row.method}: {row.advice}")
        uses = [
            n
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute)
            and n.attr == "tokenizer"
            and isinstance(n.value, ast.Name)
            and n.value.id == "self"
        ]
        if all(isinstance(use.ctx, ast.Load) for use in uses):
            for use in uses:
                _, end = self.piece.span(use)
                self.edits.replace(end - len("tokenizer"), end, "processing_class")

    def _parameter(self, node: ast.FunctionDef, name: str) -> None:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if arguments.kwarg or arguments.vararg or any(a.arg == name for a in every) or not every:
            return
        parts = [*every, *arguments.defaults, *filter(None, arguments.kw_defaults)]
        last = max(parts, key=lambda part: self.piece.span(part)[1])
        argument = max(every, key=lambda part: self.piece.span(part)[1])
        body = self.piece.span(node.returns or node.body[0])[0]
        closing = self.piece.before(body)
        while closing.string != ")":
            closing = self.piece.before(closing.start)
        self.edits.insert_after(argument, last, f"{name}=None", closing.start)


def _gone(old: str, new: str, advice: str) -> str:
    return f"{old}: {advice}" if advice else f"{old} is gone: write {new}"
