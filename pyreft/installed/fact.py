"""What pyreft relies on in another package beyond its documented interface, one fact at a time.

A fact has a probe. It runs once in a process, when the fact is first read. If the fact does not
hold, what depends on it is refused by name. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NoReturn

from pyreft.installed.releases import describe_release


class UnsupportedReleaseError(RuntimeError):
    """The installed release of a package works in a way that pyreft does not know.

    The message names what pyreft relies on, what was found in its place, and the tested releases.
    """


class Fact:
    """One fact about an installed package.

    Args:
        package: The package, as pip knows it.
        probe: Returns if the fact holds. Raises otherwise, with what was found. Its docstring
            states the fact, in one sentence.
    """

    def __init__(self, package: str, probe: Callable[[], None]) -> None:
        self.package, self.name = package, probe.__name__
        self.statement = " ".join((probe.__doc__ or "").split())
        self._probe = probe

    def __repr__(self) -> str:
        return f"Fact({self.name}: {self.statement})"

    @cached_property
    def problem(self) -> str | None:
        """What was found in place of the fact, or None if it holds."""
        return self._find_problem()

    @cached_property
    def holds(self) -> bool:
        """Whether the fact is true of the installed release."""
        return self.problem is None

    def forget(self) -> None:
        """Probe again when the fact is next asked for."""
        vars(self).pop("problem", None)
        vars(self).pop("holds", None)

    def require(self, dependent: str) -> None:
        """Raise if the fact does not hold.

        Args:
            dependent: What depends on it: the subject of the message.

        Raises:
            UnsupportedReleaseError: If the fact does not hold.
        """
        if self.problem is not None:
            self.refuse(dependent, self.problem)

    def refuse(self, dependent: str, found: str) -> NoReturn:
        """Raise UnsupportedReleaseError, because of what was found in a model or a call."""
        raise UnsupportedReleaseError(f"{dependent} relies on this: {self.explain(found)}")

    def explain(self, found: str | None = None) -> str:
        """The fact, what was found, and the releases: the end of a message."""
        found = self.problem if found is None else found
        return f"{self.statement} {describe_release(self.package)} Found: {found}."

    def _find_problem(self) -> str | None:
        import torch

        try:
            # The fact may first be read inside no_grad or inference_mode.
            with torch.inference_mode(False), torch.enable_grad():
                self._probe()
        # A changed package may fail in any way.
        except Exception as error:
            return f"{type(error).__name__}: {error}".rstrip(".")
        return None


FACTS: list[Fact] = []


def fact(package: str) -> Callable[[Callable[[], None]], Fact]:
    """Decorate the probe of a fact, which becomes a `Fact`."""

    def make(probe: Callable[[], None]) -> Fact:
        made = Fact(package, probe)
        FACTS.append(made)
        return made

    return make


def require_found(found: object, expected: object, of: str) -> None:
    """Raise ValueError, in a probe, if what was found is not what was expected."""
    if found != expected:
        raise ValueError(f"{of} is {found!r}, not {expected!r}")
