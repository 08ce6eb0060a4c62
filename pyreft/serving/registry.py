"""The adapters that the requests of this process name, each read once.

An engine is several processes: its server, its scheduler, its workers. Each reads an adapter when
it first sees a request for it, and all of them by the same code.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from pyreft.serving.served import ServedAdapter, build_base, read_served

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

# A number may be given again to an adapter from another directory.
Key = tuple[int, str]


class Registry:
    """Adapters by their number and directory.

    As many are kept as an engine may have in memory; those used the longest ago are forgotten.
    """

    def __init__(self) -> None:
        self._bases: dict[str, PreTrainedModel] = {}
        self._adapters: OrderedDict[Key, ServedAdapter] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, request: LoRARequest, vllm_config: VllmConfig) -> ServedAdapter:
        """The adapter of a request, read if it is not known.

        Raises:
            AdapterError: If it cannot be read or served, with the reason.
        """
        key = (request.lora_int_id, request.lora_path)
        with self._lock:
            if key not in self._adapters:
                self._adapters[key] = read_served(request.lora_path, self.base(vllm_config))
            self._adapters.move_to_end(key)
            while len(self._adapters) > vllm_config.lora_config.max_cpu_loras:
                self._adapters.popitem(last=False)
            return self._adapters[key]

    def known(self, request: LoRARequest) -> ServedAdapter | None:
        """The adapter of a request, None if it was not read."""
        return self._adapters.get((request.lora_int_id, request.lora_path))

    def forget(self, request: LoRARequest) -> None:
        """Read the adapter again when it is next asked for."""
        with self._lock:
            self._adapters.pop((request.lora_int_id, request.lora_path), None)

    def base(self, vllm_config: VllmConfig) -> PreTrainedModel:
        """The structure of the model of an engine."""
        config = vllm_config.model_config.hf_config
        key = f"{config.architectures} {config.to_json_string(use_diff=False)}"
        with self._lock:
            if key not in self._bases:
                self._bases[key] = build_base(config)
            return self._bases[key]


REGISTRY = Registry()
