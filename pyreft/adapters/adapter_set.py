"""The adapters of one base model, and which of them are active."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.adapters.attached import AttachedAdapter
from pyreft.base_model.trained import remember_requires_grad, trained_by_hand
from pyreft.config import ReftConfig
from pyreft.editing.hooks import EditHooks
from pyreft.lora.peft_lora import peft_tensors, without_lora

# In `adapter_names`, for a row that is not edited; the name that PEFT uses.
BASE = "__base__"
# Attributes of nn.ModuleDict cannot be names of adapters.
_TAKEN = set(dir(nn.ModuleDict())) | {BASE}
# Held while adapters are turned on or off.
_SWITCHING = threading.Lock()


class AdapterSet(Mapping[str, AttachedAdapter]):
    """Adapters by name.

    Which base model they are on, the `ReftModel` alone knows: scripts may replace it.

    Args:
        hooks: The hooks on the base model.

    Attributes:
        modules: The adapters, as a submodule of the model.
        active: The names of the active adapters, and the weight of the edits of each.
        disabled: The number of running `disable` blocks; the bare base model runs in them.
    """

    def __init__(self, hooks: EditHooks) -> None:
        self.hooks, self.modules = hooks, nn.ModuleDict()
        self.active: dict[str, float] = {}
        self.disabled, self._off = 0, ExitStack()

    def __getitem__(self, name: str) -> AttachedAdapter:
        return cast("AttachedAdapter", self.modules[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def add(self, name: str, adapter: AttachedAdapter) -> None:
        """Add an adapter, which is not active, or replace the one of that name."""
        self.modules[name] = adapter

    def describe(self) -> list[str]:
        """Readable lines: the interventions of each adapter, with its name if there are several."""
        lines = []
        for name, adapter in self.items():
            if len(self) > 1:
                weight = self.active.get(name)
                state = "inactive" if weight is None else f"active, weight {weight:g}"
                lines.append(f"  {name} ({state})")
            lines += adapter.describe()
        return lines

    @property
    def active_name(self) -> str:
        """The name of the active adapter, the first of several: `save` and trainers use it."""
        return next(iter(self.active))

    @property
    def first(self) -> AttachedAdapter:
        """The active adapter, the first of several."""
        return self[self.active_name]

    def folder(self, directory: str | os.PathLike[str], name: str) -> Path:
        """The directory of a saved adapter: as in PEFT, "default" has no subdirectory."""
        alone = name == "default" or len(self) == 1
        return Path(directory) if alone else Path(directory) / name

    def trained_with(
        self, name: str, base: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors of the base model, and of PEFT's LoRA, that belong to an adapter.

        Trainable tensors that are named nowhere belong to the active adapter.
        """
        trained = self[name].trained
        if name != self.active_name:
            return trained.trained_values(), {}
        lora = peft_tensors(base)
        others = [adapter.trained.tensors() for adapter in self.values()]
        beside = [tensor for tensors in (*others, lora) for tensor in tensors.values()]
        return trained.trained_values() | trained_by_hand(base, beside), lora

    @contextmanager
    def making(self, config: ReftConfig, base: PreTrainedModel) -> Iterator[AttachedAdapter]:
        """A new adapter, to be filled inside the block; it is inactive afterwards."""
        self.require_on()
        restore_requires_grad = remember_requires_grad(base)
        try:
            with ExitStack() as heads:
                # Its heads start from those of the base model, not from those of another adapter.
                for name in self.active:
                    heads.enter_context(self[name].trained.original())
                adapter = AttachedAdapter(config, base, self.hooks.add_sites)
                yield adapter
                adapter.move_to_components()
                adapter.train(self.modules.training)
                adapter.take_off()
        except BaseException:
            self._keep_hooks()
            raise
        finally:
            restore_requires_grad()

    def activate(self, weights: Mapping[str, float]) -> None:
        """Make these adapters active, with these weights, and all others inactive."""
        for name in reversed(self.active):
            self[name].take_off()
        self.active = dict(weights)
        for name in weights:
            self[name].put_on()

    def remove(self, name: str) -> None:
        """Remove an inactive adapter from the base model."""
        del self.modules[name]
        self._keep_hooks()

    @contextmanager
    def disable(self, base: PreTrainedModel) -> Iterator[None]:
        """Run the bare base model inside the block, see `ReftModel.disable_adapter`."""
        with _SWITCHING:
            self.disabled += 1
            if self.disabled == 1:
                for name in self.active:
                    self._off.enter_context(self[name].trained.original())
                self._off.enter_context(without_lora(base))
        try:
            yield
        finally:
            with _SWITCHING:
                self.disabled -= 1
                if not self.disabled:
                    self._off.close()

    def unwrap(self) -> None:
        """Remove the hooks from the base model and restore its trained parts."""
        hooks = self.hooks
        if not hooks.removed:
            for name in self.active:
                self[name].trained.restore()
        hooks.remove()

    def _keep_hooks(self) -> None:
        targets = (target for adapter in self.values() for target in adapter.targets)
        self.hooks.keep_sites(target.site for target in targets)

    def require_attached(self) -> None:
        """Raise RuntimeError if they were removed from the base model."""
        self.hooks.require()

    def require_on(self) -> None:
        """Raise RuntimeError if adapters cannot be switched now."""
        self.require_attached()
        if self.disabled:
            raise RuntimeError(
                "adapters cannot be added or activated inside disable_adapter(): do so before it."
            )

    def require_known(self, names: Sequence[str]) -> None:
        """Raise ValueError unless there is an adapter of each name."""
        for name in names:
            if name not in self:
                raise ValueError(f"there is no adapter {name!r}; there are {', '.join(self)}.")

    def require_new(self, name: object) -> None:
        """Raise ValueError if an adapter has this name, or the name is invalid."""
        if require_name(name) in self:
            raise ValueError(f"there is an adapter {name!r} already: choose another name.")


def require_name(name: object) -> str:
    """Check the name of an adapter, which is also the name of a directory, and return it.

    Raises:
        ValueError: If it is invalid.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in _TAKEN:
        raise ValueError(
            f'the name of an adapter consists of letters, digits, "_" and "-", got {name!r}.'
        )
    return name
