"""External links have the form of addresses, and those that say an identifier twice agree.

CI has no network beyond its package index, so nothing is fetched here. `sphinx-build -b linkcheck
-c docs . out/links` follows every link; links between pages fail the build of the site.
"""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SOURCES = sorted((ROOT / "pyreft").rglob("*.py")) + sorted((ROOT / "examples").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"https?://[^\s\"'`<>|\\{}]*")
# Addresses in examples of code, which are not for reading.
LOCAL = ("127.0.0.1", "localhost")


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def links(text):
    """The addresses in a text, without the brackets and full stops that end it."""
    for found in LINK.findall(text):
        link = found.rstrip(".,;:*")
        while link.endswith((")", "]")) and link.count("(") < link.count(")") + link.count("]"):
            link = link[:-1].rstrip(".,;:*")
        if link.endswith("..."):
            continue
        yield link


@pytest.mark.parametrize("link", ["https://a.org/b", "https://a.org/b_(c)", "https://a.org"])
def test_links_are_found_in_markdown(link):
    assert list(links(f"See [it]({link}), or {link}.")) == [link, link]


def test_there_are_links_to_check():
    assert sum(len(list(links(text_of(path)))) for path in PAGES) > 5


@pytest.mark.parametrize(
    "path", [*PAGES, *SOURCES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_external_links_are_addresses(path):
    for link in links(text_of(path)):
        parts = urlsplit(link)
        if parts.hostname in LOCAL or parts.port is not None:
            continue
        assert parts.scheme == "https", link
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.hostname or ""), link
        if parts.hostname == "arxiv.org":
            assert re.fullmatch(r"/(abs|pdf)/\d{4}\.\d{4,5}(v\d+)?", parts.path), link
        if parts.hostname == "github.com" and parts.path.strip("/"):
            assert len(parts.path.strip("/").split("/")) != 1, f"{link} is no repository"


def test_a_link_says_the_paper_that_it_leads_to():
    """[arXiv 2404.03592](https://arxiv.org/abs/2404.03592): both numbers are one paper's."""
    for path in PAGES:
        named = re.findall(
            r"\[arXiv (\d{4}\.\d{5})\]\(https://arxiv.org/abs/([\d.]+)\)", text_of(path)
        )
        for said, linked in named:
            assert said == linked, path.name
