"""What `import pyreft` offers, and what it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyreft
from pyreft.installed import trainer_methods


def test_every_public_name_can_be_imported():
    assert "ReftConfig" in pyreft.__all__
    for name in pyreft.__all__:
        assert getattr(pyreft, name).__name__ == name or name.startswith("make_last_position")


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(pyreft.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.asname for node in block.body for alias in node.names}
    assert sorted(shown) == pyreft.__all__


# The rooms, from the bottom up: each may import those before it.
ROOMS = [
    *("annotations", "tables", "memory", "installed", "positions", "interventions"),
    *("config", "data"),
    *("sharing", "base_model", "placement", "editing", "lora", "adapters", "pictures", "reuse"),
    *("training", "compat", "serving", "demo", "cli"),
]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    root = Path(pyreft.__file__).parent
    files = [*(root / room).rglob("*.py"), *root.glob(f"{room}.py")]
    assert files
    text = "\n".join(file.read_text() for file in files)
    imported = set(re.findall(r"^\s*(?:from|import) pyreft\.(\w+)", text, re.M))
    # `annotations` has names for types alone.
    assert imported <= {"annotations", *ROOMS[: ROOMS.index(room) + 1]}
    assert not re.search(r"^\s*from pyreft[\w.]* import _", text, re.M)


def test_files_and_rooms_are_small():
    root = Path(pyreft.__file__).parent
    lines = {path: len(path.read_text().splitlines()) for path in root.rglob("*.py")}
    assert {path.name: count for path, count in lines.items() if count > 300} == {}
    for room in ROOMS:
        inside = sum(count for path, count in lines.items() if path.is_relative_to(root / room))
        assert inside <= 0.15 * sum(lines.values())


def _trees():
    root = Path(pyreft.__file__).parent
    for path in root.rglob("*.py"):
        yield path.relative_to(root), ast.parse(path.read_text())


def test_private_attributes_of_others_are_read_in_one_place():
    """What is relied on beyond documented interfaces is in `installed`, where it is probed."""
    own, read = set(), {}
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                if of_self:
                    own.add(node.attr)
                elif private and path.parts[0] != "installed":
                    read.setdefault(node.attr, []).append(f"{path}:{node.lineno}")
    # Extensions of the Trainer call its methods by `super()`: those are probed by name.
    probed = {*trainer_methods.FOR_CHECKPOINTS, *trainer_methods.FOR_TRAINING}
    documented = {"_asdict", "_replace"}  # of a named tuple
    assert {n: where for n, where in read.items() if n not in own | probed | documented} == {}


def test_no_release_of_another_package_is_named_outside_of_one_place():
    named = re.compile(r"(transformers|torch|accelerate|peft|trl)\s+(from\s+)?\d+\.\d", re.I)
    for path, tree in _trees():
        if path.parts[0] == "installed":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not named.search(node.value), f"{path}:{node.lineno}"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(pyreft, "NoSuchThing")


def test_importing_loads_neither_datasets_nor_the_trainer():
    code = (
        "import sys, torch, pyreft; pyreft.get_reft_model; pyreft.LoreftIntervention;"
        "print([m for m in ('datasets', 'transformers.trainer') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_reading_an_adapter_does_not_load_transformers():
    code = (
        "import sys, pyreft.cli.report; pyreft.LoreftIntervention(8, 2);"
        "print('transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
