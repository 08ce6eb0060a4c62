"""The worker of an engine: adapters in place of LoRAs, and edits in its steps.

The model is left as it is. In a step that edits a token, it runs layer by layer with hooks at the
edited places; in all other steps, such as those that decode, it runs as compiled and captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyreft.installed.vllm import (
    layers_of,
    require_first_runner,
    run_without_graphs,
    texts_of_step,
)
from pyreft.serving.loaded import LoadedAdapters
from pyreft.serving.places import PlaceHooks
from pyreft.serving.registry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy import ndarray
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from pyreft.editing.edits import SiteEdits
    from pyreft.serving.places import Place


class WorkerAdapters:
    """What a worker calls in place of its manager of LoRAs.

    Args:
        runner: The model runner of the worker.
        model: The engine's model.
        vllm_config: The engine's config.
        device: The device of the worker.

    Raises:
        ValueError: If the layers of the model are not found, or its engine cannot serve adapters.
    """

    def __init__(
        self,
        runner: GPUModelRunner,
        model: nn.Module,
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        require_first_runner(runner)
        self._runner, self._config = runner, vllm_config
        assert vllm_config.lora_config is not None
        base = REGISTRY.base(vllm_config)
        self._hooks = PlaceHooks(layers_of(model, base.config.get_text_config().num_hidden_layers))
        self._loaded = LoadedAdapters(
            self._hooks,
            device,
            vllm_config.lora_config.max_cpu_loras or vllm_config.lora_config.max_loras,
            vllm_config.parallel_config.tensor_parallel_size,
        )
        self._edits: Mapping[Place, Sequence[SiteEdits]] = {}

    # ---- a step -------------------------------------------------------------------------------

    def plan(self, num_scheduled_tokens: ndarray) -> None:
        """Find what the step that comes edits.

        Args:
            num_scheduled_tokens: The number of tokens of each request in it.
        """
        requests, texts = texts_of_step(self._runner, num_scheduled_tokens)
        self._load(requests)
        count = int(num_scheduled_tokens.sum())
        self._edits = self._loaded.plan(texts, count)
        self._loaded.forget_except(self._runner.requests)

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Edit in the forward pass inside the block."""
        edits, self._edits = self._edits, {}
        if not edits:
            yield
            return
        with self._hooks.editing(edits), run_without_graphs():
            yield

    def _load(self, requests: Sequence[LoRARequest]) -> None:
        used = {request.lora_int_id for request in requests}
        for request in requests:
            if request.lora_int_id in self._loaded:
                self._loaded.touch(request.lora_int_id)
            else:
                self._add(request, used)

    def _add(self, request: LoRARequest, used: set[int]) -> None:
        adapter = REGISTRY.get(request.lora_path, self._config)
        self._loaded.add(request.lora_int_id, adapter, used)

    # ---- as a manager of LoRAs ----------------------------------------------------------------

    def add_adapter(self, request: LoRARequest) -> bool:
        if request.lora_int_id in self._loaded:
            return False
        self._add(request, set())
        return True

    def remove_adapter(self, number: int) -> bool:
        return self._loaded.remove(number)

    def pin_adapter(self, number: int) -> bool:
        raise ValueError("ReFT adapters cannot be pinned: give the engine a larger --max-cpu-loras")

    def list_adapters(self) -> set[int]:
        return self._loaded.numbers

    def remove_all_adapters(self) -> None:
        for number in self._loaded.numbers:
            self._loaded.remove(number)

    def set_active_adapters(self, requests: object, mapping: object) -> None:
        """Nothing: runs that warm the model up edit nothing, and steps are planned by `plan`."""

    def supports_tower_connector_lora(self) -> bool:
        return False

    def get_dummy_lora_warmup_rank(self, rank: int) -> int:
        return rank

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        return False

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield
