"""The adapters of one worker of the engine: read, put into slots, and used in its steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from pyreft.editing.edits import SiteEdits
from pyreft.installed.vllm import TextInStep
from pyreft.interventions.slotted import InterventionTable
from pyreft.interventions.stacked import stacks_with
from pyreft.serving.places import Place, PlaceHooks
from pyreft.serving.registry import split_path
from pyreft.serving.served import EditedPrompt, ServedAdapter
from pyreft.serving.step import Loaded, Row, plan_step


class LoadedAdapters:
    """Adapters by number, the weights of at most `capacity` of them on the device.

    Args:
        hooks: The places of the engine's model.
        device: The device.
        capacity: How many are kept; the one used the longest ago makes room.
        processes: The number of tensor parallel processes.
    """

    def __init__(
        self, hooks: PlaceHooks, device: torch.device, capacity: int, processes: int = 1
    ) -> None:
        self._hooks, self._device, self._processes = hooks, device, processes
        self._capacity = capacity
        self._tables: dict[tuple[object, ...], InterventionTable] = {}
        self._adapters: OrderedDict[int, tuple[ServedAdapter, list[Loaded]]] = OrderedDict()
        self._prompts: dict[str, tuple[ServedAdapter, EditedPrompt]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._adapters

    @property
    def numbers(self) -> set[int]:
        """The numbers of the adapters."""
        return set(self._adapters)

    def add(self, number: int, adapter: ServedAdapter, used: set[int]) -> None:
        """Put an adapter on the device, in place of one of that number.

        Args:
            number: Its number.
            adapter: The adapter.
            used: Numbers that must stay.

        Raises:
            ValueError: If the engine's model lacks a place that it edits, or there is no memory
                for it; the others are as they were.
        """
        for place in adapter.places:
            self._hooks.require(place, self._processes)
        self.remove(number)
        while len(self._adapters) >= self._capacity:
            oldest = next((one for one in self._adapters if one not in used), None)
            if oldest is None:
                break
            self.remove(oldest)
        loaded: list[Loaded] = []
        self._adapters[number] = adapter, loaded
        try:
            for index in range(len(adapter.places)):
                loaded.append(self._load(adapter, index))
        except torch.OutOfMemoryError as error:
            self.remove(number)
            raise ValueError(
                f"{len(self._adapters)} adapters fit into the memory of {self._device}, and "
                f"{self._capacity} are allowed: give a smaller --max-cpu-loras (of pyreft serve: "
                "--in-memory), or leave more memory beside the cache by --gpu-memory-utilization, "
                "on CPUs by VLLM_CPU_KVCACHE_SPACE."
            ) from error

    def touch(self, number: int) -> None:
        """Note that an adapter is used now."""
        self._adapters.move_to_end(number)

    def remove(self, number: int) -> bool:
        """Free the slots of an adapter; whether there was one of that number."""
        _, loaded = self._adapters.pop(number, (None, []))
        for one in loaded:
            if one.table is not None:
                one.table.free(one.slot)
        return bool(loaded)

    def plan(self, texts: Sequence[TextInStep], count: int) -> Mapping[Place, Sequence[SiteEdits]]:
        """The edits of a step.

        Args:
            texts: Its texts that have an adapter.
            count: The number of tokens of the step.
        """
        rows = []
        for text in texts:
            adapter, loaded = self._adapters[text.adapter]
            length = split_path(text.path)[1] or text.length
            known = self._prompts.get(text.request)
            if known is None or known[0] is not adapter or known[1].length != length:
                known = adapter, adapter.place(length, text.ids)
                self._prompts[text.request] = known
            where = (text.offset, text.start, text.stop)
            rows.append(Row(known[1], adapter.summed, loaded, *where))
        return plan_step(rows, count, self._device)

    def forget_except(self, requests: Mapping[str, object]) -> None:
        """Forget the prompts of all other requests."""
        if len(self._prompts) > 2 * len(requests) + 64:
            self._prompts = {r: known for r, known in self._prompts.items() if r in requests}

    def _load(self, adapter: ServedAdapter, index: int) -> Loaded:
        module, place = adapter.interventions[index], adapter.places[index]
        target = adapter.targets[index]
        heads, count = target.config.heads, target.component.num_heads
        key, weight = stacks_with(module) if count is None else None, adapter.weights[index]
        if key is None:
            return Loaded(place, module.to(self._device), None, 0, heads, count, weight)
        table = self._tables.setdefault((place, *key), InterventionTable(self._device))
        return Loaded(place, module, table, table.put(module), None, None, weight)
