"""One tiny forward pass of a model: what its modules read and return, and how often they run.

It runs when the first adapter is put on a model, in evaluation mode and without gradients; models
of the same class and config need no other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pyreft.annotations import Inputs
from pyreft.base_model.outputs import hidden_of
from pyreft.base_model.running import evaluating, execution_device
from pyreft.base_model.tiny_inputs import (
    CHANGED,
    CHANGED_IN_DECODER,
    OF_DECODER,
    ROWS,
    TOKENS,
    tiny_inputs,
)
from pyreft.installed.modules import any_is_compiled

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What a tiny forward pass showed.

    Args:
        shapes: (name of a module, "input" or "output") -> the shape of its hidden state, for each
            time that it ran. A module that did not run is missing.
        order: The names of the modules in the order in which they ended.
        offsets: Number of tokens of a hidden state -> the index at which the text begins among
            them, where it can be told.
        queries: Numbers of tokens of hidden states that begin as queries that the model has
            learned, and not as tokens of the text.
        read_by: The name of a module -> the names of those whose first input is its very output.
        added: Number of tokens of a hidden state -> how many of them, at its start and its end, the
            model has added to those of its input.
        ids_rows: How many rows of ids the model reads for each text: MusicGen has one for each
            codebook.
        problem: Why there was no forward pass; None if there was one.
    """

    shapes: Mapping[tuple[str, str], Sequence[Shape]]
    order: Sequence[str] = ()
    offsets: Mapping[int, int] = field(default_factory=dict)
    queries: Set[int] = frozenset()
    added: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    read_by: Mapping[str, Set[str]] = field(default_factory=dict)
    ids_rows: int = 1
    problem: str | None = None

    def ran(self, name: str) -> bool:
        """Whether a module ran."""
        return (name, "output") in self.shapes


_traces: dict[tuple[type[PreTrainedModel], str, bool], Trace] = {}


def trace_of(model: PreTrainedModel) -> Trace:
    """The trace of a model, made at most once for its class and config."""
    if any_is_compiled(model.modules()):
        return Trace({}, problem="it is compiled")
    # Of a model without weights, only shapes are seen.
    key = (type(model), model.config.to_json_string(use_diff=False), _is_empty(model))
    if key not in _traces:
        _traces[key] = _run(model)
    return _traces[key]


def _run(model: PreTrainedModel) -> Trace:
    problems = []
    device = execution_device(model, torch.device("meta" if _is_empty(model) else "cpu"))
    # Of what it would keep for steps of a generation, nothing is read.
    cached = "use_cache" in inspect.signature(model.forward).parameters
    alone = {"use_cache": False} if cached else {}
    # Linear maps are alike in both modes. In evaluation bitsandbytes converts those of 4 bits, on a
    # CPU with AVX-512 BF16, and computes wrong gradients from then on.
    with evaluating(model, but=(nn.Linear,)), torch.no_grad(), torch.random.fork_rng():
        for inputs in tiny_inputs(model):
            seen = _Seen()
            handles = [seen.watch(name, module) for name, module in model.named_modules()]
            try:
                given = {name: _to(value, device, model) for name, value in inputs.items()}
                model(**given, **alone)
            # A model may fail in any way on inputs that do not fit it.
            except Exception as error:
                shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
                problems.append(f"{shapes}: {type(error).__name__}: {str(error)[:120]}")
            else:
                return Trace(
                    *(seen.shapes, seen.order, seen.offsets, seen.queries, seen.added),
                    read_by=seen.read_by,
                    ids_rows=len(given["input_ids"]) // ROWS if "input_ids" in given else 1,
                )
            finally:
                for handle in handles:
                    handle.remove()
    return Trace({}, problem=problems[0] if problems else "no inputs of it are known")


def _is_empty(model: PreTrainedModel) -> bool:
    """Whether a model is on the meta device, without weights."""
    return all(parameter.device.type == "meta" for parameter in model.parameters())


def _to(value: Tensor, device: torch.device, model: PreTrainedModel) -> Tensor:
    if not value.is_floating_point():
        return value.to(device)
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return value.to(device, next(floats, value.dtype))


class _Seen:
    """What the hooks of a pass have seen, see `Trace`."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[str, str], list[Shape]] = {}
        self.order: list[str] = []
        self.offsets: dict[int, int] = {}
        self.queries: set[int] = set()
        self.added: dict[int, tuple[int, int]] = {}
        self.read_by: dict[str, set[str]] = {}
        # id of a hidden state -> the module that returned it, and whether it is still that one.
        self._returned: dict[int, tuple[str, ReferenceType[Tensor]]] = {}

    def watch(self, name: str, module: nn.Module) -> RemovableHandle:
        """Note the shapes of a module whenever it runs."""
        return module.register_forward_hook(_Watcher(name, self._note), with_kwargs=True)

    def _note(self, name: str, read: Tensor | None, returned: Tensor | None) -> None:
        self.order.append(name)
        writer, known = self._returned.get(id(read), ("", None))
        if known is not None and known() is read:
            self.read_by.setdefault(writer, set()).add(name)
        if returned is not None:
            self._returned[id(returned)] = name, ref(returned)
        for side, hidden in (("input", read), ("output", returned)):
            shape = () if hidden is None else tuple(hidden.shape)
            self.shapes.setdefault((name, side), []).append(shape)
            if hidden is None or hidden.is_meta:
                continue
            if hidden.dim() == 3 and len(hidden) == ROWS:
                self._find_offset(hidden)
                if hidden.shape[1] not in self.added:
                    self._find_added(hidden)

    def _find_added(self, hidden: Tensor) -> None:
        """Which of so many tokens the model adds: until they attend to its input, all rows agree.

        Seen in the first hidden state that has as many.
        """
        count = hidden.shape[1]
        alike = (hidden == hidden[0]).all(-1).all(0).int()
        before, after = (int(one.cumprod(0).sum()) for one in (alike, alike.flip(0)))
        self.added[count] = before, after
        if before == count and count not in (TOKENS, OF_DECODER):
            self.queries.add(count)

    def _find_offset(self, hidden: Tensor) -> None:
        """Where the text begins in hidden states of so many tokens.

        Seen where a token depends on itself alone: after the embeddings. Two rows differ from the
        first one, each in one known token.
        """
        count = hidden.shape[1]
        if count in self.offsets or not hidden.is_floating_point():
            return
        found = [(hidden[row] != hidden[0]).any(-1).nonzero().flatten() for row in (1, 2)]
        if all(len(one) == 1 for one in found):
            for changed in (CHANGED, CHANGED_IN_DECODER):
                first, last = (int(one) - at for one, at in zip(found, changed, strict=True))
                if first == last:
                    self.offsets[count] = first


class _Watcher:
    """The hook on one module; of a class of pyreft's, so that it is known for its own."""

    def __init__(
        self, name: str, note: Callable[[str, Tensor | None, Tensor | None], None]
    ) -> None:
        self._name, self._note = name, note

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs, output: object
    ) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._note(self._name, given[0] if given else None, hidden_of(output))
