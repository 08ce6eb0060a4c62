"""The server: adapters that are loaded and unloaded while it runs, and unknown ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING

from pyreft.serving.registry import REGISTRY
from pyreft.serving.served import read_served
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


def load_adapter(original: Answer) -> Answer:
    async def load_lora_adapter(
        self: OpenAIServingModels,
        request: LoadLoRAAdapterRequest,
        base_model_name: str | None = None,
    ) -> ErrorResponse | str | None:
        config, name = self.engine_client.vllm_config, request.lora_name
        if not serves_reft(config):
            return await original(self, request, base_model_name)
        try:
            # In a thread, because the server goes on, and an adapter may have to be downloaded.
            await asyncio.to_thread(read_served, request.lora_path, REGISTRY.base(config))
        # A hostile file may fail in any way.
        except Exception as error:
            return _refuse(str(error))
        replaced = self.lora_requests.pop(name, None) if request.load_inplace else None
        # What replaces an adapter is another one: requests that run go on with the old one.
        new = request.model_copy(update={"load_inplace": False})
        found = await original(self, new, base_model_name)
        if found is None or isinstance(found, str):
            return found
        if replaced is not None:
            self.lora_requests[name] = replaced
        # The adapter was read, so what a worker refuses is the adapter's matter.
        return _refuse(found.error.message) if found.error.code >= 500 else found

    return load_lora_adapter


def unload_adapter(original: Answer) -> Answer:
    async def unload_lora_adapter(
        self: OpenAIServingModels, request: UnloadLoRAAdapterRequest
    ) -> ErrorResponse | str | None:
        known = self.lora_requests.get(request.lora_name)
        found = await original(self, request)
        if known is not None and serves_reft(self.engine_client.vllm_config):
            REGISTRY.forget(known)
        return found

    return unload_lora_adapter


def check(original: Answer) -> Answer:
    async def check_model(self: BaseServing, request: object) -> ErrorResponse | str | None:
        found = await original(self, request)
        names = ", ".join(self.models.lora_requests)
        if found is None or isinstance(found, str):
            return found
        if names and found.error.code == HTTPStatus.NOT_FOUND:
            found.error.message += f" Adapters: {names}."
        return found

    return check_model


def _refuse(message: str) -> ErrorResponse:
    make = import_module("vllm.entrypoints.serve").create_error_response
    made: ErrorResponse = make(
        message=message, err_type="BadRequestError", status_code=HTTPStatus.BAD_REQUEST
    )
    return made
