"""The kinds of rows in the table of names that other libraries renamed or removed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """An argument that a callable no longer has.

    With `new`, it is renamed; with `keep`, it stays and a note is printed; else it is removed.
    """

    library: str
    callables: tuple[str, ...]
    """The last part of their names: `from_pretrained` matches that of any class of the library."""
    old: str
    new: str = ""
    then: str = ""
    """The new value if the old one, a bool, is True. Empty: the value stays."""
    otherwise: str = "None"
    """The new value if the old one is False, and not a literal. A literal False is removed."""
    keep: bool = False
    of_models: bool = False
    """Whether configs and tokenizers still ignore the argument of their own `from_pretrained`."""
    advice: str = ""
    """The note. `{value}` in it is the old value as the script has it."""
    since: str = ""
    """The first release of transformers without the argument, if 5.0 still has it."""


@dataclass(frozen=True)
class Name:
    """A module, class or function that was removed.

    A name that ends in `*` matches names with this prefix that continue with a capital letter.
    """

    old: str
    new: str = ""
    advice: str = ""
    since: str = ""


@dataclass(frozen=True)
class Method:
    """A method or attribute that objects of transformers or pyreft no longer have.

    Without advice, the call of the method becomes a call of the object itself. An owner with a
    dot, such as "reft_model.config", matches only if its last part is read first.
    """

    owner: str
    old: str
    advice: str = ""


@dataclass(frozen=True)
class Value:
    """A value that an argument no longer takes. Without `new`, a note is printed."""

    library: str
    callables: tuple[str, ...]
    argument: str
    position: int
    """Among the positional arguments, -1 if it is given by name only."""
    old: str
    new: str = ""
    advice: str = ""
    since: str = ""


@dataclass(frozen=True)
class Default:
    """An argument whose default differs in the callable that replaces the old one."""

    library: str
    callable: str
    argument: str
    position: int
    value: str


@dataclass(frozen=True)
class Parameter:
    """A parameter that a method which overrides one of the Trainer must take."""

    method: str
    parameter: str


@dataclass(frozen=True)
class Override:
    """A method that subclasses overrode, and that is no longer called."""

    library: str
    base: str
    method: str
    advice: str


Row = Argument | Name | Method | Value | Default | Parameter | Override
