"""The adapters that this process runs, each read once from its copy, see `copies`.

An engine is several processes: its server, its scheduler, its workers. Each reads an adapter when
it first sees a request for it, and all of them from one copy.

The path of a request is that copy. That of a beam says as well how long the prompt was, because
vLLM runs each step of a beam as a request whose prompt has the tokens of the beam: copy NUL length.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from pyreft.serving.served import ServedAdapter, build_base
from pyreft.serving.sources import read_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

_MARK = "\0"


def split_path(path: str) -> tuple[str, int | None]:
    """The directory in the path of a request, and the number of tokens of the prompt of a beam."""
    directory, mark, length = path.partition(_MARK)
    return directory, int(length) if mark else None


def join_path(directory: str, length: int | None) -> str:
    """The path of a request, see `split_path`."""
    return directory if length is None else f"{directory}{_MARK}{length}"


def moved(given: LoRARequest, path: str, number: int) -> LoRARequest:
    """A request with another path and number."""
    return type(given)(given.lora_name, number, path, given.base_model_name)


class Registry:
    """Adapters by the directories of their copies.

    As many are kept as an engine may have in memory; those used the longest ago are forgotten.
    """

    def __init__(self) -> None:
        self._bases: dict[str, PreTrainedModel] = {}
        self._adapters: OrderedDict[str, ServedAdapter] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, path: str, vllm_config: VllmConfig) -> ServedAdapter:
        """The adapter of a request, read if it is not known.

        Raises:
            OSError: If its copy is gone.
        """
        directory, _ = split_path(path)
        with self._lock:
            found = self._adapters.get(directory)
            if found is None:
                found = ServedAdapter(read_parts(directory), self.base(vllm_config))
            self.add(directory, found, vllm_config)
        return found

    def add(self, directory: str, adapter: ServedAdapter, vllm_config: VllmConfig) -> None:
        """Keep an adapter as the one used last."""
        assert vllm_config.lora_config is not None
        with self._lock:
            self._adapters[directory] = adapter
            self._adapters.move_to_end(directory)
            while len(self._adapters) > (vllm_config.lora_config.max_cpu_loras or 1):
                self._adapters.popitem(last=False)

    def known(self, path: str) -> ServedAdapter | None:
        """The adapter of a request, None if it was not read."""
        return self._adapters.get(split_path(path)[0])

    def base(self, vllm_config: VllmConfig) -> PreTrainedModel:
        """The structure of the model of an engine."""
        config = vllm_config.model_config.hf_config
        key = f"{config.architectures} {config.to_json_string(use_diff=False)}"
        with self._lock:
            if key not in self._bases:
                self._bases[key] = build_base(config)
            return self._bases[key]


REGISTRY = Registry()
