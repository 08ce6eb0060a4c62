"""Write a directory with all of its files, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyreft.sharing.checkpoint import AdapterError


@contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory to write to, which is renamed at the end of the block.

    Raises:
        AdapterError: If the name exists already, except as an empty directory.
    """
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AdapterError(
            f"will not write to {str(path)!r}, which is there: name a new directory."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        inside = Path(temporary) / "new"
        inside.mkdir()
        yield inside
        os.replace(inside, path)
