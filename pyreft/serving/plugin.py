"""vLLM's plugin, which vLLM calls in all of its processes.

It does nothing in engines that are not asked to serve ReFT adapters, see `switch`. Each function of
vLLM that is extended is named here, and what is relied on of it is a fact of `installed`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING

from pyreft.installed.vllm import FACTS_OF_SERVING, refusing
from pyreft.serving.switch import require_possible, serves_reft

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.entrypoints.generate.beam_search.utils import BeamSearchSequence
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_SERVER = "vllm.entrypoints.openai.models.serving"
_registered: list[str] = []


def register() -> None:
    """Let vLLM's engines serve ReFT adapters where they are asked to."""
    if _registered:
        return
    _check_configs()
    if all(one.holds for one in FACTS_OF_SERVING):
        extend(
            "vllm.v1.worker.lora_model_runner_mixin", "LoRAModelRunnerMixin.load_lora_model", _load
        )
        extend("vllm.v1.engine.core", "EngineCore.preprocess_add_request", _add_request)
        extend("vllm.v1.core.kv_cache_utils", "_gen_lora_extra_hash_keys", _lora_keys)
        extend("vllm.v1.core.kv_cache_utils", "_gen_prompt_embeds_extra_hash_keys", _range_keys)
        extend("vllm.v1.engine.input_processor", "InputProcessor.__init__", _make_processor)
        extend("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", _process_inputs)


def extend(module: str, path: str, make: Callable[..., Callable[..., object]]) -> None:
    """Replace a function of vLLM by one that is made of it, once in a process.

    Args:
        module: Its module.
        path: Its name there, "Class.function".
        make: The function -> what replaces it.
    """
    if f"{module}.{path}" in _registered:
        return
    _registered.append(f"{module}.{path}")
    *classes, name = path.split(".")
    owner: object = import_module(module)
    for one in classes:
        owner = getattr(owner, one)
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(make(original)))


def _check_configs() -> None:
    """Check configs, and keep a platform from not compiling because of LoRAs: there are none."""
    platform = type(import_module("vllm.platforms").current_platform)
    check = platform.check_and_update_config

    def check_and_update_config(vllm_config: VllmConfig) -> None:
        if not serves_reft(vllm_config):
            check(vllm_config)
            return
        require_possible(vllm_config)
        lora_config, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            check(vllm_config)
        finally:
            vllm_config.lora_config = lora_config

    _registered.append("check_and_update_config")
    # The class is found by vLLM's own code, and mypy does not know it.
    setattr(platform, "check_and_update_config", staticmethod(check_and_update_config))  # noqa: B010


def _load(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def load_lora_model(
        self: GPUModelRunner, model: nn.Module, vllm_config: VllmConfig, device: torch.device
    ) -> nn.Module:
        if not serves_reft(vllm_config):
            return original(self, model, vllm_config, device)
        from pyreft.serving.worker import WorkerAdapters

        self.lora_manager = adapters = WorkerAdapters(self, model, vllm_config, device)
        run = self._model_forward

        def set_active_loras(
            input_batch: InputBatch, num_scheduled_tokens: ndarray, *args: object
        ) -> None:
            adapters.plan(num_scheduled_tokens)

        def run_edited(*args: object, **kwargs: object) -> object:
            with adapters.editing():
                return run(*args, **kwargs)

        self.set_active_loras, self._model_forward = set_active_loras, run_edited
        return model

    return load_lora_model


def _add_request(original: Callable[..., object]) -> Callable[..., object]:
    def preprocess_add_request(self: EngineCore, request: EngineCoreRequest) -> object:
        if request.lora_request is not None and serves_reft(self.vllm_config):
            from pyreft.serving.registry import REGISTRY

            # The keys of its blocks are computed next, and by then its adapter is known.
            REGISTRY.get(request.lora_request.lora_path, self.vllm_config)
        return original(self, request)

    return preprocess_add_request


def _lora_keys(original: Callable[..., list[object]]) -> Callable[..., list[object]]:
    def keys_of_lora(request: Request) -> list[object]:
        from pyreft.serving.cache_keys import is_served

        return [] if is_served(request) else original(request)

    return keys_of_lora


def _range_keys(original: Callable[..., list[object]]) -> Callable[..., list[object]]:
    def keys_of_range(request: Request, start_token_idx: int, end_token_idx: int) -> list[object]:
        from pyreft.serving.cache_keys import keys_of_block

        found = original(request, start_token_idx, end_token_idx)
        return [*found, *keys_of_block(request, start_token_idx, end_token_idx)]

    return keys_of_range


def _make_processor(original: Callable[..., None]) -> Callable[..., None]:
    def make(
        self: InputProcessor, vllm_config: VllmConfig, *args: object, **kwargs: object
    ) -> None:
        original(self, vllm_config, *args, **kwargs)
        if not serves_reft(vllm_config):
            return
        from pyreft.serving import http, metrics

        beams = "vllm.entrypoints.generate.beam_search.utils"
        extend(beams, "BeamSearchSequence.__init__", _make_beam)
        outputs = "vllm.v1.engine.output_processor"
        extend(outputs, "OutputProcessor._update_stats_from_finished", metrics.count)
        extend("vllm.v1.engine.async_llm", "AsyncLLM.add_lora", _add_adapter)
        extend("vllm.v1.engine.llm_engine", "LLMEngine.add_lora", _add_adapter)
        if _SERVER in sys.modules:
            extend(_SERVER, "OpenAIServingModels.init_static_loras", http.load_at_start)
            extend(_SERVER, "OpenAIServingModels.load_lora_adapter", http.load_adapter)
            extend(_SERVER, "OpenAIServingModels.unload_lora_adapter", http.unload_adapter)
            extend("vllm.entrypoints.serve.engine.serving", "BaseServing._check_model", http.check)

    return make


def _make_beam(original: Callable[..., None]) -> Callable[..., None]:
    def make(self: BeamSearchSequence, *args: object, **kwargs: object) -> None:
        from pyreft.serving.registry import join_path, moved, split_path

        original(self, *args, **kwargs)
        given, prompt = self.lora_request, self.orig_prompt
        if given is not None and prompt["type"] != "enc_dec":
            directory, length = split_path(given.lora_path)
            path = join_path(directory, length or len(prompt["prompt_token_ids"]))
            self.lora_request = moved(given, path, given.lora_int_id)

    return make


def _add_adapter(original: Callable[..., object]) -> Callable[..., object]:
    def add_lora(self: AsyncLLM | LLMEngine, lora_request: LoRARequest) -> object:
        from pyreft.serving.copies import COPIES

        if serves_reft(self.vllm_config):
            lora_request = COPIES.request(lora_request, self.vllm_config)
        return original(self, lora_request)

    return add_lora


def _process_inputs(original: Callable[..., EngineCoreRequest]) -> Callable[..., EngineCoreRequest]:
    def process_inputs(self: InputProcessor, *args: object, **kwargs: object) -> EngineCoreRequest:
        made = original(self, *args, **kwargs)
        if made.lora_request is not None and serves_reft(self.vllm_config):
            from pyreft.serving.copies import COPIES
            from pyreft.serving.registry import REGISTRY, split_path

            ids, embeds = made.prompt_token_ids, made.prompt_embeds
            with refusing():
                if made.resumable:
                    raise ValueError("the prompt of a session never ends, so it has no adapter.")
                made.lora_request = COPIES.request(made.lora_request, self.vllm_config)
                path = made.lora_request.lora_path
                length = split_path(path)[1] or len(embeds if ids is None else ids)
                REGISTRY.get(path, self.vllm_config).place(length, ids)
        return made

    return process_inputs
