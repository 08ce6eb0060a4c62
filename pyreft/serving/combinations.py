"""Combinations of adapters that requests name as their model, as in "cats*0.5+dogs".

One is loaded when a request first names it, as an adapter whose name is its source. As many are
kept as the engine has adapters in memory, and one of an adapter that is replaced or unloaded goes
with it.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from pyreft.serving.sources import parse_source
from pyreft.sharing import AdapterError

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

_lock = asyncio.Lock()


def is_combination(name: str, models: OpenAIServingModels) -> bool:
    """Whether a request names a combination of loaded adapters, each of them once."""
    parts = _parts(name)
    return 0 < len(parts) == len(set(parts)) and set(parts) <= models.lora_requests.keys()


async def load_combination(name: str, models: OpenAIServingModels) -> ErrorResponse | None:
    """Load a combination if it is not; an error if it cannot be served."""
    async with _lock:
        loaded = models.lora_requests
        known = _combinations(models)
        if name in known:
            loaded[name] = loaded.pop(name)  # the one used last
        if name in loaded:
            return None
        config = models.engine_client.vllm_config.lora_config
        assert config is not None
        while known and len(known) >= (config.max_cpu_loras or 1):
            await _unload(known.pop(0), models)
        protocol = import_module("vllm.entrypoints.serve.lora.protocol")
        request = protocol.LoadLoRAAdapterRequest(lora_name=name, lora_path=name)
        answer = await models.load_lora_adapter(request)
        return None if isinstance(answer, str) else answer


async def unload_combinations_of(adapter: str, models: OpenAIServingModels) -> None:
    """Unload the combinations of an adapter that is not what it was."""
    if _parts(adapter):  # in no combination, and perhaps unloaded by the lines below
        return
    async with _lock:
        for name in _combinations(models):
            if adapter in _parts(name):
                await _unload(name, models)


def _combinations(models: OpenAIServingModels) -> list[str]:
    """Those that are loaded, the one used last at the end."""
    loaded = models.lora_requests.items()
    return [name for name, one in loaded if name == one.lora_path and _parts(name)]


def _parts(name: str) -> list[str]:
    """The adapters that a combination names, none if a name is that of one adapter."""
    try:
        found = [part.adapter for part in parse_source(name)]
    except AdapterError:
        return []
    return [] if found == [name] else found


async def _unload(name: str, models: OpenAIServingModels) -> None:
    protocol = import_module("vllm.entrypoints.serve.lora.protocol")
    await models.unload_lora_adapter(protocol.UnloadLoRAAdapterRequest(lora_name=name))
    models.lora_resolver_lock.pop(name, None)
