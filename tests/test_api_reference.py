"""The reference on the site: what it lists, and that there is a docstring to show for each."""

import inspect
import re
from pathlib import Path

import pytest

import pyreft

ROOT = Path(__file__).parent.parent
PAGES = {page.stem: page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst")}
LISTED = [
    name
    for page in PAGES.values()
    for name in re.findall(r"^\.\. auto\w+:: pyreft\.([\w.]+)$", page, re.M)
]
FULLY_DOCUMENTED = (pyreft.ReftConfig, pyreft.ReftModel, pyreft.ReftTrainer)


def public_methods(cls):
    """The methods and properties of this package that a class has, without those of its bases."""
    for base in cls.__mro__:
        if base.__module__.startswith("pyreft."):
            for name, value in vars(base).items():
                function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if not name.startswith("_") and inspect.isfunction(inspect.unwrap(function)):
                    yield name, function


def test_every_public_name_is_on_one_reference_page():
    assert sorted(name for name in LISTED if name in pyreft.__all__) == pyreft.__all__


def test_no_name_is_listed_twice():
    assert len(set(LISTED)) == len(LISTED)


def test_every_page_is_in_the_contents():
    _, contents = PAGES["index"].split(":maxdepth: 1\n")
    assert sorted(contents.split()) == sorted(set(PAGES) - {"index"})


@pytest.mark.parametrize("name", pyreft.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name):
    value = getattr(pyreft, name)
    assert vars(value).get("__doc__") if isinstance(value, type) else value.__doc__


@pytest.mark.parametrize("cls", FULLY_DOCUMENTED, ids=lambda cls: cls.__name__)
def test_every_public_method_has_a_docstring(cls):
    assert not [name for name, function in public_methods(cls) if not function.__doc__]


def test_every_public_method_of_the_model_is_listed():
    methods = {f"ReftModel.{name}" for name, _ in public_methods(pyreft.ReftModel)}
    assert methods <= set(LISTED)
