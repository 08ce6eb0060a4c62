"""What `import pyreft` offers, and what it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyreft


def test_every_public_name_can_be_imported():
    assert "ReftConfig" in pyreft.__all__
    for name in pyreft.__all__:
        assert getattr(pyreft, name).__name__ == name or name.startswith("make_last_position")


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(pyreft.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.asname for node in block.body for alias in node.names}
    assert sorted(shown) == pyreft.__all__


# Room -> those that it may import. `compat` lends `ReftModel` its methods and formats.
BELOW = {
    "positions": set(),
    "interventions": set(),
    "config": {"positions", "interventions"},
    "data": {"positions", "interventions", "config"},
    "sharing": {"positions", "interventions", "config"},
    "compat": {"positions", "interventions", "config", "sharing"},
    "modeling": {"positions", "interventions", "config", "sharing", "compat"},
    "reuse": {"positions", "interventions", "config", "sharing", "modeling"},
    "training": {"positions", "interventions", "config", "data", "sharing", "modeling", "reuse"},
}


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_one_way(room):
    files = (Path(pyreft.__file__).parent / room).glob("*.py")
    text = "\n".join(file.read_text() for file in files)
    imported = set(re.findall(r"^\s*(?:from|import) pyreft\.(\w+)", text, re.M))
    assert imported <= BELOW[room] | {room}
    assert not re.search(r"^\s*from pyreft[\w.]* import _", text, re.M)


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
