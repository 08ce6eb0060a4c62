"""Stores the known states of examples, as many as fit in memory.

Each epoch sees every example once, in its own order. So states that fit are kept, and none is
evicted for another, which would not be needed any sooner. All are dropped when anything changes
that they depend on beside their tokens, of which there is a fingerprint.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.installed.attention_functions import attention_of
from pyreft.installed.modules import stored_tensors, versions_of
from pyreft.installed.tuners import is_tuner, tuner_settings
from pyreft.reuse.skipped_layers import LayerOutput

# The number of values that a fingerprint reads of a tensor; reading all would take too long.
_SAMPLES = 64


@dataclass(frozen=True)
class State:
    """The known states of one example.

    Args:
        hidden: (W, D), the output of the skipped layers at the tokens that are computed; None if
            no layer is skipped.
        known: For each layer that runs, keys and values of earlier tokens, (heads, P, width).
    """

    hidden: Tensor | None
    known: tuple[Tensor, ...]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {f"known.{i:05}": tensor for i, tensor in enumerate(self.known)}
        return named if self.hidden is None else {"hidden": self.hidden, **named}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> State:
        """The inverse of `tensors`."""
        known = tuple(tensors[name] for name in sorted(tensors) if name != "hidden")
        return cls(tensors.get("hidden"), known)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


class Store:
    """The states of examples by key, for one base model.

    Attributes:
        size: The size of the states in memory, in bytes.
        output: The form of the outputs of the model's layers.
    """

    def __init__(self) -> None:
        self.size = 0
        self.output = LayerOutput()
        self._memory = 0
        self._held: dict[Hashable, State] = {}
        self._files: dict[Hashable, Path] = {}
        self._directory: Path | None = None
        # Deletes the directory when this store is garbage-collected.
        self._delete: Callable[[], object] | None = None
        self._made_with: Hashable = None

    def __len__(self) -> int:
        return len(self._held) + len(self._files)

    @property
    def on_disk(self) -> int:
        """The number of states on disk."""
        return len(self._files)

    def limit(self, memory: int, disk: str | None) -> None:
        """Limit the bytes in memory, and store the rest in a directory, if one is given."""
        self._memory = memory
        while self._held and self.size > memory:
            self.size -= self._held.popitem()[1].size
        if self._directory is not None and (disk is None or self._directory.parent != Path(disk)):
            assert self._delete is not None
            self._delete()
            self._files.clear()
            self._directory = None
        if disk is not None and self._directory is None:
            Path(disk).mkdir(parents=True, exist_ok=True)
            # Private to this user.
            self._directory = Path(tempfile.mkdtemp(prefix="pyreft-reuse-", dir=disk))
            self._delete = weakref.finalize(self, shutil.rmtree, self._directory, True)

    def require(self, made_with: Hashable) -> None:
        """Drop everything unless it was computed with this fingerprint."""
        if made_with != self._made_with:
            self.clear()
            self._made_with = made_with

    def clear(self) -> None:
        """Drop everything."""
        for file in self._files.values():
            file.unlink()
        self._held.clear()
        self._files.clear()
        self.size = 0

    def get(self, key: Hashable) -> State | None:
        """The known states of an example, on the CPU."""
        if key in self._files:
            return State.of(load_file(self._files[key]))
        return self._held.get(key)

    def put(self, key: Hashable, state: State) -> bool:
        """Store a state if it fits; return whether it is stored."""
        if key in self._held or key in self._files:
            return True
        if self.size + state.size <= self._memory:
            self._held[key] = State.of({n: _to_cpu(t) for n, t in state.tensors().items()})
            self.size += state.size
            return True
        if self._directory is None:
            return False
        file = self._directory / f"{len(self._files)}.safetensors"
        save_file({n: t.contiguous() for n, t in state.tensors().items()}, file)
        self._files[key] = file
        return True


def _to_cpu(tensor: Tensor) -> Tensor:
    """Copy to the CPU, to pinned memory, so that a copy back to the GPU does not block."""
    return tensor.cpu().pin_memory() if tensor.is_cuda else tensor


_STORES: weakref.WeakKeyDictionary[nn.Module, Store] = weakref.WeakKeyDictionary()


def store_of(base: nn.Module) -> Store:
    """The store of a base model, which all of its adapters and trainers share."""
    return _STORES.setdefault(base, Store())


def versions(base: nn.Module) -> Hashable:
    """A value that changes when a frozen tensor of the model is replaced or written in place.

    Fast enough to compute in every step.
    """
    frozen = _frozen(base)
    return tuple(zip((tensor.data_ptr() for tensor in frozen), versions_of(frozen), strict=True))


@torch.no_grad()
def contents(base: PreTrainedModel) -> Hashable:
    """A value that changes with the model's config, with the settings of PEFT's layers, and with
    some values of each frozen tensor.

    Writes to `tensor.data` leave no trace in `versions`; use this at the beginning of a run.
    """
    read = []
    for tensor in _frozen(base):
        flat = tensor.detach().reshape(-1)
        read.append(flat[:: max(1, len(flat) // _SAMPLES)].double().sum().cpu())
    values = torch.stack(read).numpy().tobytes() if read else b""
    tuners = tuple(tuner_settings(module) for module in base.modules() if is_tuner(module))
    return values, attention_of(base.config), repr(base.config.to_dict()), tuners


def _frozen(base: nn.Module) -> list[Tensor]:
    tensors = (*base.parameters(), *base.buffers())
    return stored_tensors([tensor for tensor in tensors if not tensor.requires_grad])
