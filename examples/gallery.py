"""Make the pictures of docs/gallery.md: those of notebooks, and those of scripts, which it runs.

    python examples/gallery.py                # of the notebooks
    python examples/gallery.py chat safety    # run these scripts, and draw them

Of a notebook it takes the output of the cell with the tag "gallery". A picture stays a picture,
and text is drawn as a terminal shows it.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

EXAMPLES = Path(__file__).parent
PICTURES = EXAMPLES.parent / "docs" / "gallery"
# The picture that a script draws itself; of the others the last lines that they print are drawn.
DRAWN = {"overhead": "out/overhead/overhead.png", "lora_and_reft": "out/lora_and_reft/losses.png"}
ASKED = ["When do you open?", "On which day are you closed?", "How many books can I take home?"]
LINES, TALLEST = 16, 30


def draw_text(text: str, path: Path) -> None:
    """Draw lines in a fixed-width font; those of a diff are red and green."""
    lines = [
        part
        for line in text.strip("\n").splitlines()
        for part in textwrap.wrap(line, 100, drop_whitespace=False) or [""]
    ]
    lines = lines[:TALLEST] + ["..."] * (len(lines) > TALLEST)
    width, height = max(map(len, lines)), len(lines)
    figure = Figure(figsize=(0.075 * width + 0.3, 0.17 * height + 0.3), facecolor="#f6f8fa")
    colors = {"+": "#116329", "-": "#a40e26"} if "\n+++ " in text else {}
    for number, line in enumerate(lines):
        figure.text(
            *(0.15 / figure.get_figwidth(), 1 - (0.15 + 0.17 * number) / figure.get_figheight()),
            line,
            family="monospace",
            fontsize=9,
            va="top",
            color=colors.get(line[:1], "#1f2328"),
            parse_math=False,
        )
    figure.savefig(path, dpi=110)
    reduce(path.read_bytes(), path)


def reduce(picture: bytes, path: Path) -> None:
    """Write a PNG of 256 colours, which is small."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(path, optimize=True)


def of_notebook(notebook: Path) -> bytes | str:
    """The picture, or else the text, that the tagged cell puts out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (one for one in cells if "gallery" in one["metadata"].get("tags", ()))
    for output in cell["outputs"]:
        if "image/png" in output.get("data", {}):
            return base64.b64decode("".join(output["data"]["image/png"]))
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def of_script(name: str, folder: str) -> bytes | str:
    """Run a script; its picture, or else the last lines that it prints."""
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*(before if name == "distributed" else []), str(EXAMPLES / f"{name}.py")]
    command += ["--ask", *ASKED] if name == "chat" else []
    # Bars and logs go to the terminal, results to the picture.
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"COLUMNS": "100"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    if name in DRAWN:
        return (Path(folder) / DRAWN[name]).read_bytes()
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("{")]
    return "\n".join(lines[-LINES:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="its name, without .py")
    scripts = parser.parse_args().scripts
    PICTURES.mkdir(exist_ok=True)
    made: dict[str, bytes | str] = {}
    if not scripts:
        found = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
        made = {notebook.stem: of_notebook(notebook) for notebook in found}
    for name in scripts:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = of_script(name, folder)
    for name, one in made.items():
        path = PICTURES / f"{name}.png"
        if isinstance(one, str):
            draw_text(one, path)
        else:
            reduce(one, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
