"""Execute the notebooks of this directory, each from top to bottom, and write their outputs.

    python examples/notebooks/execute.py                # all of them
    python examples/notebooks/execute.py first_reft     # one

It needs nbclient and ipykernel, which `pip install -e ".[docs]"` installs. A notebook gets the hash
of its code along with its outputs, so that tests/test_notebooks.py finds outputs of other code.
"""

import argparse
import base64
import hashlib
import io
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

DIRECTORY = Path(__file__).parent
# Bars of downloads and of loading would be outputs, and so would a word on missing ipywidgets.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


def code_hash(notebook: dict) -> str:
    """The SHA-256 of the code of a notebook: of its code cells, in their order."""
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = [source if isinstance(source, str) else "".join(source) for source in cells]
    return hashlib.sha256("\n\0".join(texts).encode()).hexdigest()


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in a new kernel, beside its file. An error of a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    os.environ |= QUIET
    client = NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,  # on a busy machine
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _of_256_colours(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "code_sha256": code_hash(notebook),
    }
    return notebook


def _of_256_colours(encoded: str) -> str:
    """A picture of a third of the size, which looks the same if it is a plot."""
    image, small = Image.open(io.BytesIO(base64.b64decode(encoded))), io.BytesIO()
    image.convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in DIRECTORY.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME")
    for name in parser.parse_args().names or names:
        start, path = time.perf_counter(), DIRECTORY / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        seconds, size = time.perf_counter() - start, path.stat().st_size / 1000
        print(f"{name}: {seconds:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
