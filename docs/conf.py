"""Sphinx builds the site: the README, the pages of docs/, and a reference from the docstrings.

    sphinx-build -W --keep-going -c docs . out/docs

The source directory is the root of the repository, so that a link between pages is the same path
here, on GitHub and on the site.
"""

import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import inspect, logging
from typer.main import get_command
from typer.testing import CliRunner

import pyreft
from pyreft.cli.app import app as command_line

logger = logging.getLogger(__name__)

project, author, release = "pyreft", "the authors of pyreft", pyreft.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "docs/reference/*.rst", "examples/notebooks/*.ipynb"]
# Directories that are not searched for pages, which takes long in an environment.
exclude_patterns = [".*", "build", "dist", "out", "pyreft", "tests"]
exclude_patterns += [f"examples/{name}" for name in ("benchmarks", "loreft", "notebooks/out")]
html_theme, html_title = "furo", f"pyreft {release}"
html_copy_source = False

# The stored outputs of notebooks are shown. examples/notebooks/execute.py makes them.
nb_execution_mode = "off"

# Links to headings, down to the third level.
myst_heading_anchors = 3

# What is between backticks in a docstring is a link if it is a name, and code if it is none.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shape", "params_style")]

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Shape|Yields):")


def mark_up_docstring(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """Show indented blocks, which are formulas and code, as they are, and link the pages named."""
    marked: list[str] = []
    in_section = False
    for line in lines:
        indented = line.startswith(" ")
        if line and not indented:
            in_section = _SECTION.fullmatch(line) is not None
        if in_section or not indented:
            line = re.sub(r"\bdocs/(\w+)\.md\b", r":doc:`/docs/\1`", line)
        elif not any(one.startswith(" ") for one in marked[-2:]):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked
    if what in ("attribute", "property") and re.search(r":(\s|$)", lines[0] if lines else ""):
        logger.warning("napoleon takes for a type what is before the colon: %s", lines[0])


def show_signature(
    app: Sphinx, what: str, name: str, of: Any, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the arguments of all low-rank kinds, which are those of one constructor."""
    if isinstance(of, type) and issubclass(of, pyreft.LowRankIntervention):
        found = inspect.signature(pyreft.LowRankIntervention.__init__, bound_method=True)
        return inspect.stringify_signature(
            found, show_return_annotation=False, unqualified_typehints=True
        ), ""
    if signature and "<factory>" in signature:
        return signature.replace("<factory>", "..."), returns
    return None


def link_by_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Node | None:
    """Link `pyreft.config.reft.ReftConfig`, as annotations have it, as `pyreft.ReftConfig`."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pyreft."):
        return None
    name = target.rpartition(".")[2]
    if name in pyreft.__all__:
        domain = env.domains.python_domain
        where = node["refdoc"], app.builder, "obj", f"pyreft.{name}"
        return domain.resolve_xref(env, *where, node, text)
    if not _exists(target):
        logger.warning("there is no %s", target, location=node)
    return None


def _exists(target: str) -> bool:
    module, _, name = target.rpartition(".")
    try:
        import_module(target)
    except ImportError:
        return bool(module) and hasattr(import_module(module), name)
    return True


def link_names_in_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Link public names that are code in the text of a page or notebook to the reference."""
    if not str(doctree["source"]).endswith((".md", ".ipynb")):
        return
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext().removeprefix("pyreft.")
        inside = code.parent
        if name in pyreft.__all__ and not isinstance(inside, (nodes.title, nodes.reference)):
            link = pending_xref(refdomain="py", reftype="obj", reftarget=f"pyreft.{name}")
            link["refdoc"] = app.env.docname
            inside.replace(code, link)
            link += code


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add what GitHub should not show: the contents of the site, and the help of each command.

    Pages and their order are those of docs/index.md, with its headings; one that is not there is an
    error.
    """
    if docname == root_doc:
        index = (Path(app.srcdir) / "docs" / "index.md").read_text(encoding="utf-8")
        source[0] += _contents("Documentation", ["docs/index", "docs/gallery", "docs/comparison"])
        for heading, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", index, re.M):
            pages = re.findall(r"\]\(([\w./]+)\.(?:md|ipynb|rst)\)", text)
            source[0] += _contents(heading, [posixpath.normpath(f"docs/{page}") for page in pages])
    if docname == "docs/reference/command_line":
        source[0] += "".join(map(_help_of, get_command(command_line).commands))


def _contents(caption: str, pages: list[str]) -> str:
    listed = "\n".join(dict.fromkeys(pages))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def _help_of(command: str) -> str:
    title = f"pyreft {command}"
    shown = CliRunner().invoke(command_line, [command, "--help"], prog_name="pyreft").output
    indented = "\n".join(f"    {line}".rstrip() for line in shown.strip().splitlines())
    return f"\n{title}\n{'-' * len(title)}\n\n::\n\n{indented}\n"


def write_start_page(app: Sphinx, failed: Exception | None) -> None:
    """Lead from index.html, which servers look for, to the page of the README."""
    if failed is None and app.builder.format == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    # Before napoleon, which is at 500.
    app.connect("autodoc-process-docstring", mark_up_docstring, priority=400)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("missing-reference", link_by_public_name)
    app.connect("doctree-read", link_names_in_pages)
    app.connect("source-read", add_contents)
    app.connect("build-finished", write_start_page)
    return {"parallel_read_safe": True}
