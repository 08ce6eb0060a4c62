"""The edits of one call: renamed or removed arguments, and values that are refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pyreft.cli.script_edits import Edits
from pyreft.cli.script_names import Names
from pyreft.compat.renamed import ROWS, rows_of
from pyreft.compat.rows import Argument, Default, Method, Value

_METHODS = {row.old: row.owner for row in ROWS if isinstance(row, Method)}
_LOADED_BY = {"transformers", "pyreft"}
_NO_MODELS = ("Config", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor")


class Calls:
    """Adds to the edits of a piece those of its calls."""

    def __init__(self, edits: Edits, names: Names) -> None:
        self.piece, self.edits, self.names = edits.piece, edits, names

    def migrate(self, node: ast.Call) -> None:
        """Find the edits and notes of one call."""
        dotted = self.names.resolve(node.func)
        if dotted is None and isinstance(node.func, ast.Attribute) and self.is_method(node.func):
            dotted = f"transformers.{node.func.attr}"
        if dotted is None:
            return
        rows = rows_of(dotted)
        no_model = dotted.rpartition(".")[0].endswith(_NO_MODELS)
        own = self.names.fields(node.func)
        rows = {o: r for o, r in rows.items() if o not in own and not (no_model and r.of_models)}
        removed: list[ast.AST] = []
        for keyword in node.keywords:
            if keyword.arg in rows:
                if self._argument(node, keyword, rows):
                    removed.append(keyword)
            elif keyword.arg is None:
                self._splat(node, keyword.value, rows)
        items = sorted([*node.args, *node.keywords], key=lambda item: self.piece.span(item))
        self.edits.remove_items(list(items), removed)
        self._values(node, dotted)
        self._defaults(node, dotted, [item for item in items if item not in removed])

    def is_method(self, node: ast.Attribute) -> bool:
        """Whether an attribute is likely a removed one of transformers, not the script's own."""
        owner = _METHODS.get(node.attr, "")
        _, _, part = owner.partition(".")
        before = not part or (isinstance(node.value, ast.Attribute) and node.value.attr == part)
        known = bool(owner) and before and node.attr not in self.names.others
        return known and bool(self.names.libraries & _LOADED_BY)

    def _argument(self, call: ast.Call, keyword: ast.keyword, rows: dict[str, Argument]) -> bool:
        """Edit one argument. Returns whether it is to be removed instead."""
        row, value = rows[keyword.arg or ""], keyword.value
        text = self.piece.source(value)
        is_false = (
            bool(row.then) and isinstance(value, ast.Constant) and value.value in (False, None)
        )
        if is_false:
            return True
        if row.keep or self._is_taken(call, keyword, rows):
            self.edits.note(keyword, describe(call.func, row, row.new, text))
            return False
        if not row.new:
            if row.advice and not (isinstance(value, ast.Constant) and value.value is None):
                self.edits.note(keyword, describe(call.func, row, "", text))
            return True
        if not row.then:
            self.edits.rename(keyword, row.old, row.new)
        elif isinstance(value, ast.Constant) and value.value is True:
            self.edits.replace_node(keyword, f"{row.new}={self._with_import(row.then)}")
        else:
            self._condition(keyword, row)
        return False

    def _condition(self, keyword: ast.keyword, row: Argument) -> None:
        """`old=condition` becomes `new=then if condition else otherwise`."""
        value, (start, end) = keyword.value, self.piece.span(keyword)
        equals = self.piece.after(self.piece.after(start).end)
        head, tail = f"{row.new}={self._with_import(row.then)} if ", f" else {row.otherwise}"
        if isinstance(value, ast.IfExp):
            choices = (value.body, value.orelse)
            if [c.value for c in choices if isinstance(c, ast.Constant)] == [True, False]:
                test_start, test_end = self.piece.span(value.test)
                self.edits.replace(start, test_start, head)
                self.edits.replace(test_end, end, tail)
                return
            head, tail = head + "(", ")" + tail
        self.edits.replace(start, equals.end, head)
        self.edits.replace(end, end, tail)

    def _is_taken(self, call: ast.Call, keyword: ast.keyword, rows: dict[str, Argument]) -> bool:
        """Whether another argument of the call gives the value of the new one."""
        new = rows[keyword.arg or ""].new
        return bool(new) and any(
            other is not keyword
            and other.arg is not None
            and (other.arg == new or (other.arg in rows and rows[other.arg].new == new))
            and not (isinstance(other.value, ast.Constant) and other.value.value in (False, None))
            for other in call.keywords
        )

    def _with_import(self, then: str) -> str:
        """The new value, with the class in it imported."""
        if not then.startswith("BitsAndBytesConfig"):
            return then
        if "BitsAndBytesConfig" in self.names.imports:
            return then
        modules = [n for n, d in self.names.imports.items() if d == {"transformers"}]
        if modules:
            return f"{min(modules)}.{then}"
        body = [s for s in self.piece.tree.body if not _comes_first(s)]
        imports = (s for s in body if isinstance(s, ast.ImportFrom) and s.module == "transformers")
        first = next(imports, body[0])
        self.edits.insert_line_before(first, "from transformers import BitsAndBytesConfig")
        return then

    def _splat(self, call: ast.Call, value: ast.expr, rows: dict[str, Argument]) -> None:
        """`**arguments`: the keys of dicts that the script assigns to the variable."""
        for key, text in self._keys(value):
            if text in rows:
                self.edits.note(key, describe(call.func, rows[text], rows[text].new))

    def _keys(self, value: ast.expr) -> Iterator[tuple[ast.AST, str]]:
        nodes = set(ast.walk(self.piece.tree))
        dicts = self.names.values.get(value.id, []) if isinstance(value, ast.Name) else [value]
        for made in dicts:
            if made not in nodes:
                continue
            if isinstance(made, ast.Dict):
                for key in made.keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key, key.value
            elif isinstance(made, ast.Call) and self.piece.source(made.func) == "dict":
                yield from ((k, k.arg) for k in made.keywords if k.arg)
        if isinstance(value, ast.Name):
            for node in nodes:
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    named = isinstance(node.value, ast.Name) and node.value.id == value.id
                    if named and isinstance(node.slice, ast.Constant):
                        yield node, str(node.slice.value)

    def _values(self, call: ast.Call, dotted: str) -> None:
        library, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
        for row in ROWS:
            if isinstance(row, Value) and row.library == library and last in row.callables:
                given = [k.value for k in call.keywords if k.arg == row.argument]
                given += call.args[row.position : row.position + 1] if row.position >= 0 else []
                for value in given:
                    text = value.value if isinstance(value, ast.Constant) else None
                    if not isinstance(text, str) or not (text + "_").startswith(row.old + "_"):
                        continue
                    if row.new:
                        self.edits.replace_node(value, f'"{row.new}"')
                    else:
                        self.edits.note(value, f'{last} has no "{text}" any more: {row.advice}')

    def _defaults(self, call: ast.Call, dotted: str, items: list[ast.AST]) -> None:
        library, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
        given = {keyword.arg for keyword in call.keywords}
        unknown = None in given or any(isinstance(a, ast.Starred) for a in call.args)
        added = [
            f"{row.argument}={row.value}"
            for row in ROWS
            if isinstance(row, Default)
            and (row.library, row.callable) == (library, last)
            and row.argument not in given
            and len(call.args) <= row.position
        ]
        if unknown and added:
            self.edits.note(call, f"if it is not given, write {' and '.join(added)}, as was")
        elif added and items:
            closing = self.piece.span(call)[1] - 1
            self.edits.insert_after(items[-1], items[-1], ", ".join(added), closing)


def _comes_first(statement: ast.stmt) -> bool:
    """Whether a statement must stay first: a docstring, an import of `__future__`."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def describe(function: ast.expr, row: Argument, new: str, value: str = "...") -> str:
    """The text of a note about an argument that its callable no longer has."""
    value = " ".join(value.split())
    advice = row.advice.format(value=value) or (f"write {new}" if new else "remove it")
    if row.then:
        advice = f"write {new}={row.then} in place of {row.old}=True"
    return f"{ast.unparse(function)} has no {row.old} any more: {advice}"
