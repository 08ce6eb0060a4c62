"""The gallery has every example, and a picture of each that is of the notebook as it is."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES, PICTURES = ROOT / "examples", ROOT / "docs" / "gallery"
PAGE = (ROOT / "docs" / "gallery.md").read_text()
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.fixture
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", EXAMPLES / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_has_every_example():
    there = {path.relative_to(ROOT).as_posix() for path in [*EXAMPLES.glob("*.py"), *NOTEBOOKS]}
    there -= {"examples/base_model.py", "examples/gallery.py"}
    linked = {f"examples/{link}" for link in re.findall(r"\]\(\.\./examples/([^)]+)\)", PAGE)}
    assert there == {link for link in linked if "loreft/" not in link}


def test_every_picture_is_shown_and_small():
    shown = set(re.findall(r"\]\(gallery/([^)]+)\)", PAGE))
    assert shown == {path.name for path in PICTURES.iterdir()}
    assert max(path.stat().st_size for path in PICTURES.iterdir()) < 100_000


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_picture_of_a_notebook_is_its_output(notebook, gallery, tmp_path):
    made, stored = gallery.of_notebook(notebook), PICTURES / f"{notebook.stem}.png"
    if isinstance(made, str):
        gallery.draw_text(made, tmp_path / "text.png")
    else:
        gallery.reduce(made, tmp_path / "text.png")
    with Image.open(tmp_path / "text.png") as new, Image.open(stored) as old:
        assert new.size == old.size
        assert new.convert("RGB").tobytes() == old.convert("RGB").tobytes()


def test_a_diff_is_drawn_in_colours(gallery, tmp_path):
    gallery.draw_text("--- a\n+++ b\n-old\n+new\n same", tmp_path / "diff.png")
    with Image.open(tmp_path / "diff.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(100_000)}
    assert any(g > r + 60 for r, g, _ in colors) and any(r > g + 60 for r, g, _ in colors)
