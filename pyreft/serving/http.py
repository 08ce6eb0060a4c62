"""The server: adapters that are loaded and unloaded while it runs, and unknown ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING

from pyreft.installed.vllm import paths_in_use
from pyreft.serving import metrics
from pyreft.serving.combinations import (
    is_combination,
    load_combination,
    unload_combinations_of,
)
from pyreft.serving.copies import COPIES, numbered
from pyreft.serving.switch import serves_reft

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.entrypoints.serve.lora.protocol import (
        LoadLoRAAdapterRequest,
        UnloadLoRAAdapterRequest,
    )

Answer = Callable[..., Awaitable["ErrorResponse | str | None"]]


def load_at_start(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def init_static_loras(self: OpenAIServingModels) -> None:
        config = self.engine_client.vllm_config
        # A server that takes over loads what the one before it had loaded.
        restored = COPIES.restore(config) if serves_reft(config) else None
        if restored is not None:
            path = import_module("vllm.entrypoints.openai.models.protocol").LoRAModulePath
            self.static_lora_modules = [path(name=name, path=source) for name, source in restored]
        await original(self)
        if serves_reft(config):
            _note(self)

    return init_static_loras


def load_adapter(original: Answer) -> Answer:
    async def load_lora_adapter(
        self: OpenAIServingModels,
        request: LoadLoRAAdapterRequest,
        base_model_name: str | None = None,
    ) -> ErrorResponse | str | None:
        config, name, source = self.engine_client.vllm_config, request.lora_name, request.lora_path
        refused = (
            not name or not source or (name in self.lora_requests and not request.load_inplace)
        )
        if refused or not serves_reft(config):
            return await original(self, request, base_model_name)
        replaces = name in self.lora_requests
        directory = COPIES.take_restored(name, source)
        try:
            if directory is None:
                # In a thread, because the server goes on, and an adapter may be downloaded.
                directory = await asyncio.to_thread(COPIES.write, source, config)
            # Workers may refuse it; until then requests are answered with the one before it.
            make = import_module("vllm.lora.request").LoRARequest
            await self.engine_client.add_lora(numbered(make(name, 1, directory), directory))
        # A hostile file may fail in any way.
        except Exception as error:
            COPIES.delete(directory)
            return _refuse(str(error))
        COPIES.keep(name, source, directory)
        found = await original(self, request, base_model_name)
        _note(self)
        if replaces:
            await unload_combinations_of(name, self)
        return found

    return load_lora_adapter


def unload_adapter(original: Answer) -> Answer:
    async def unload_lora_adapter(
        self: OpenAIServingModels, request: UnloadLoRAAdapterRequest
    ) -> ErrorResponse | str | None:
        found = await original(self, request)
        if serves_reft(self.engine_client.vllm_config):
            _note(self)
            metrics.remove(request.lora_name)
            await unload_combinations_of(request.lora_name, self)
        return found

    return unload_lora_adapter


def check(original: Answer) -> Answer:
    async def check_model(self: BaseServing, request: object) -> ErrorResponse | str | None:
        found = await original(self, request)
        name = getattr(request, "model", None)
        if isinstance(name, str) and is_combination(name, self.models):
            return await load_combination(name, self.models)
        if found is None or isinstance(found, str):
            return found
        names = ", ".join(self.models.lora_requests)
        if names and found.error.code == HTTPStatus.NOT_FOUND:
            found.error.message += f" Adapters: {names}."
        return found

    return check_model


def _note(models: OpenAIServingModels) -> None:
    client = models.engine_client
    COPIES.note(models.lora_requests.values(), paths_in_use(client), client.vllm_config)


def _refuse(message: str) -> ErrorResponse:
    make = import_module("vllm.entrypoints.serve").create_error_response
    made: ErrorResponse = make(
        message=message, err_type="BadRequestError", status_code=HTTPStatus.BAD_REQUEST
    )
    return made
