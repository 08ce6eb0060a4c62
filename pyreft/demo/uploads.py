"""The files of an uploaded directory become an adapter, or are refused. None is run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from pyreft.compat.formats import FILE_PATTERNS
from pyreft.demo.playground import Playground
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import CONFIG_NAME, WEIGHTS_NAME

MAX_BYTES = 512 * 2**20
_READ = (CONFIG_NAME, WEIGHTS_NAME, *FILE_PATTERNS)


def read_upload(playground: Playground, files: Sequence[str]) -> Adapter:
    """Read the adapter in an uploaded directory.

    The files of adapters are copied into a directory of their own, which the loader reads.

    Args:
        playground: What the adapter is for.
        files: Where the browser's files lie. Their folders are not known.

    Raises:
        AdapterError: If it is no adapter, or one that the loader refuses.
    """
    wanted = [path for path in map(Path, files) if any(fnmatch(path.name, p) for p in _READ)]
    names = [path.name for path in wanted]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AdapterError(
            f"the directory holds {twice} several times, in folders of its own: choose the folder "
            "of one adapter."
        )
    size = sum(path.stat().st_size for path in wanted)
    if size > MAX_BYTES:
        raise AdapterError(
            f"the adapter has {size / 2**20:.0f} MiB, and at most {MAX_BYTES // 2**20} are read "
            "here: name its directory in the command, pyreft demo MODEL ADAPTER."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "upload")
        folder.mkdir()
        for path in wanted:
            shutil.copyfile(path, folder / path.name)
        try:
            return playground.read(folder)
        except AdapterError as error:
            said = str(error).replace(str(folder), "the upload")
            raise AdapterError(said) from error
