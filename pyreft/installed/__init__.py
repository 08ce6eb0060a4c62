"""What pyreft relies on in the installed packages beyond their documented interfaces.

Nothing outside this folder names a release or a private interface of torch, transformers,
accelerate or PEFT. Each fact has a probe. If a fact does not hold, what depends on it is refused.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pyreft.installed.fact import FACTS, Fact, UnsupportedReleaseError

__all__ = ["Fact", "UnsupportedReleaseError", "all_facts"]


def all_facts() -> list[Fact]:
    """Every fact about an installed package; those about missing packages are left out."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem != "__init__":
            import_module(f"{__name__}.{path.stem}")
    return [fact for fact in FACTS if find_spec(fact.package) is not None]
