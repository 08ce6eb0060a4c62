"""Resolve the names of a script: to a name of a library, or to a class of the script."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

_GUARDS = {"ImportError", "ModuleNotFoundError", "Exception"}


class Names:
    """The names that some pieces of Python bind, taken as one script.

    A name that is bound to two things is not resolved, because it may be either.
    """

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self.trees = list(trees)
        self.imports: dict[str, set[str]] = {}
        self.classes: dict[str, list[ast.ClassDef]] = {}
        self.others: set[str] = set()
        self.stars: set[str] = set()
        self.libraries: set[str] = set()
        self.guarded: set[ast.AST] = set()
        self.values: dict[str, list[ast.expr]] = {}
        self._visited: set[str] = set()
        for node in self.walk():
            self._bind(node)

    def walk(self) -> Iterator[ast.AST]:
        """All nodes of all pieces."""
        for tree in self.trees:
            yield from ast.walk(tree)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                self.libraries.add(first)
                dotted = alias.name if alias.asname else first
                self.imports.setdefault(alias.asname or first, set()).add(dotted)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            self.libraries.add(module.partition(".")[0])
            for alias in node.names:
                if alias.name == "*":
                    self.stars.add(module)
                else:
                    dotted = f"{module}.{alias.name}"
                    self.imports.setdefault(alias.asname or alias.name, set()).add(dotted)
        elif isinstance(node, ast.ClassDef):
            self.classes.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.others.add(node.name)
        elif isinstance(node, ast.arg):
            self.others.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            self.others.add(node.id)
        elif isinstance(node, ast.Try) and any(_catches_imports(h) for h in node.handlers):
            self.guarded.update(inner for part in node.body for inner in ast.walk(part))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    self.values.setdefault(target.id, []).append(node.value)

    def resolve(self, node: ast.AST) -> str | None:
        """The dotted name of an expression: of an import, or of the base of a class."""
        if isinstance(node, ast.Attribute):
            owner = self.resolve(node.value)
            return f"{owner}.{node.attr}" if owner else None
        if not isinstance(node, ast.Name) or node.id in self.others:
            return None
        imported, classes = self.imports.get(node.id, set()), self.classes.get(node.id, [])
        if len(imported) == 1 and not classes:
            return next(iter(imported))
        if len(classes) == 1 and not (imported and not _extends_namesake(classes[0])):
            return self.base(classes[0])
        if not imported and not classes and len(self.stars) == 1:
            return f"{next(iter(self.stars))}.{node.id}"
        return None

    def binds(self, name: str) -> bool:
        """Whether the script binds a name."""
        return name in self.imports or name in self.classes or name in self.others

    def base(self, definition: ast.ClassDef, constructor: bool = True) -> str | None:
        """The class of a library that a class of the script extends.

        Args:
            definition: The class.
            constructor: Whether to return None for a class that defines `__init__`.
        """
        own = any(isinstance(d, ast.FunctionDef) and d.name == "__init__" for d in definition.body)
        if own and constructor:
            return None
        if definition.name in self._visited:
            return None
        self._visited.add(definition.name)
        try:
            return next(filter(None, map(self._resolve_base, definition.bases)), None)
        finally:
            self._visited.remove(definition.name)

    def _resolve_base(self, base: ast.expr) -> str | None:
        """Resolve a base. A class may extend an import of its own name."""
        if isinstance(base, ast.Name) and base.id in self._visited:
            imported = self.imports.get(base.id, set())
            return next(iter(imported)) if len(imported) == 1 else None
        return self.resolve(base)

    def fields(self, node: ast.AST) -> set[str]:
        """The fields that a class of the script and its bases in the script declare."""
        if not isinstance(node, ast.Name):
            return set()
        found: set[str] = set()
        for definition in self.classes.get(node.id, []):
            for part in definition.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    found.add(part.target.id)
            if definition.name not in self._visited:
                self._visited.add(definition.name)
                found = found.union(*map(self.fields, definition.bases))
                self._visited.remove(definition.name)
        return found

    def made_by(self, node: ast.AST) -> ast.expr | None:
        """The callable whose call a variable was assigned, if all its values are such calls."""
        if not isinstance(node, ast.Name) or node.id in self.imports:
            return None
        values = self.values.get(node.id, [])
        calls = [value.func for value in values if isinstance(value, ast.Call)]
        names = {self.resolve(function) for function in calls}
        return calls[0] if calls and len(calls) == len(values) and len(names) == 1 else None


def _extends_namesake(definition: ast.ClassDef) -> bool:
    return any(isinstance(b, ast.Name) and b.id == definition.name for b in definition.bases)


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in _GUARDS for n in ast.walk(handler.type))
