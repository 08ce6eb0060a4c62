"""A directory that appears with all of its files, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyreft.sharing.checkpoint import AdapterError


@contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """Write into the directory that is given here; it gets its name at the end of the block.

    Raises:
        AdapterError: If there is something of that name already, but for an empty directory.
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
