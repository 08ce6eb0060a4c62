"""Copies of the adapters that requests name: an adapter stays what it was when it was loaded.

(name, source)  ->  folder/<digest>-<random>/    of a directory, a repository, several with weights
                    folder/loaded.json           what a server has loaded, for one that takes over

The process that takes requests writes the copies, and all processes of the engine read them. A
request goes to the engine with its copy as the path, and with a number made of the digest, so that
equal numbers are equal adapters.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyreft.serving.registry import REGISTRY, join_path, moved, split_path
from pyreft.serving.served import ServedAdapter
from pyreft.serving.sources import read_source, write_parts
from pyreft.serving.switch import folder_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

LOADED = "loaded.json"
# An adapter by the name and the source that its users give.
Key = tuple[str, str]


class Copies:
    """The copies that this process has written."""

    def __init__(self) -> None:
        self._temporary: Path | None = None
        self._kept: dict[Key, str] = {}
        self._restored: dict[Key, str] = {}
        self._dropped: set[str] = set()

    def request(self, given: LoRARequest, vllm_config: VllmConfig) -> LoRARequest:
        """What goes to the engine for a request that was given; its adapter is read if needed.

        Raises:
            AdapterError: If it cannot be read or served, with the reason.
        """
        source, length = split_path(given.lora_path)
        if self.owns(source, vllm_config):
            return given
        key = (given.lora_name, source)
        if key not in self._kept or given.load_inplace:
            self.keep(*key, self.write(source, vllm_config))
        return numbered(given, join_path(self._kept[key], length))

    def write(self, source: str, vllm_config: VllmConfig) -> str:
        """Read and check what a source names, and copy it to a new directory.

        Raises:
            AdapterError: If it cannot be read or served, with the reason.
        """
        named = {name: directory for (name, _), directory in self._kept.items()}
        parts = read_source(source, named)
        adapter = ServedAdapter(parts, REGISTRY.base(vllm_config))
        name = f"{adapter.fingerprint[:16]}-{secrets.token_hex(4)}"
        directory = self._folder(vllm_config) / name
        write_parts(directory, parts)
        REGISTRY.add(str(directory), adapter, vllm_config)
        return str(directory)

    def keep(self, name: str, source: str, directory: str) -> None:
        """Answer requests for a name and a source from now on with this copy."""
        if (name, source) in self._kept:
            self._dropped.add(self._kept[name, source])
        self._kept[name, source] = directory

    def owns(self, path: str, vllm_config: VllmConfig) -> bool:
        """Whether a path is that of a copy."""
        return Path(path).parent == self._folder(vllm_config)

    def delete(self, directory: str | None) -> None:
        """Delete a copy that is not kept."""
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    # ---- of a server --------------------------------------------------------------------------

    def note(
        self, loaded: Iterable[LoRARequest], used: Collection[str], vllm_config: VllmConfig
    ) -> None:
        """Note what a server has loaded, and delete all other copies but those in use.

        Args:
            loaded: What it has loaded.
            used: Paths of the requests that run.
            vllm_config: The config of the engine.
        """
        wanted = {(one.lora_name, one.lora_path) for one in loaded}
        self._dropped |= {self._kept.pop(key) for key in self._kept.keys() - wanted}
        unused = self._dropped - {split_path(path)[0] for path in used}
        self._dropped -= unused
        for directory in unused:
            self.delete(directory)
        listed = [[*key, directory] for key, directory in self._kept.items()]
        file = self._folder(vllm_config) / LOADED
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps(listed))
        os.replace(beside, file)

    def restore(self, vllm_config: VllmConfig) -> list[Key] | None:
        """What the server before this one had loaded, None if there was none."""
        file = self._folder(vllm_config) / LOADED
        if not file.exists():
            return None
        self._restored = {(name, source): d for name, source, d in json.loads(file.read_text())}
        return list(self._restored)

    def take_restored(self, name: str, source: str) -> str | None:
        """The copy of what the server before this one had loaded, once."""
        return self._restored.pop((name, source), None)

    def _folder(self, vllm_config: VllmConfig) -> Path:
        if (given := folder_of(vllm_config)) is not None:
            return given
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="pyreft-"))
            atexit.register(shutil.rmtree, self._temporary, ignore_errors=True)
        return self._temporary


def numbered(given: LoRARequest, path: str) -> LoRARequest:
    """A request with the path of a copy, and the number of its content."""
    digest = Path(split_path(path)[0]).name.partition("-")[0]
    number = int(digest[:15], 16) + 1  # of 64 bits with a sign, and not 0
    return moved(given, path, number)


COPIES = Copies()
