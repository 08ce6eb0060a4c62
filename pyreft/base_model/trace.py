"""One tiny forward pass of a model: what its modules read and return, and how often they run.

It runs when the first adapter is put on a model whose config does not tell that, in evaluation mode
and without gradients; models of the same class and config need no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.annotations import Inputs
from pyreft.base_model.outputs import hidden_of
from pyreft.base_model.running import evaluating, execution_device
from pyreft.base_model.tiny_inputs import tiny_inputs

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What a tiny forward pass showed.

    Args:
        shapes: (name of a module, "input" or "output") -> the shape of its hidden state, for each
            time that it ran. A module that did not run is missing.
        problem: Why there was no forward pass; None if there was one.
    """

    shapes: Mapping[tuple[str, str], list[Shape]]
    problem: str | None = None


_traces: dict[tuple[type[PreTrainedModel], str], Trace] = {}


def trace_of(model: PreTrainedModel) -> Trace:
    """The trace of a model that reads no text, made at most once for its class and config."""
    key = (type(model), model.config.to_json_string(use_diff=False))
    if key not in _traces:
        _traces[key] = _run(model)
    return _traces[key]


def _run(model: PreTrainedModel) -> Trace:
    problems = []
    device = execution_device(model, torch.device("cpu"))
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        for inputs in tiny_inputs(model):
            shapes: dict[tuple[str, str], list[Shape]] = {}
            handles = [_watch(name, m, shapes) for name, m in model.named_modules()]
            try:
                model(**{name: value.to(device, model.dtype) for name, value in inputs.items()})
            # A model may fail in any way on inputs that do not fit it.
            except Exception as error:
                given = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
                problems.append(f"{given}: {type(error).__name__}: {str(error)[:120]}")
            else:
                return Trace(shapes)
            finally:
                for handle in handles:
                    handle.remove()
    return Trace({}, problems[0] if problems else "it takes no pixel_values, and no sound")


class _Watcher:
    """Notes the shapes of one module; a class, so that the hook is known to be pyreft's."""

    def __init__(self, name: str, shapes: dict[tuple[str, str], list[Shape]]) -> None:
        self._name, self._shapes = name, shapes

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs, output: object
    ) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._note("input", given[0] if given else None)
        self._note("output", hidden_of(output))

    def _note(self, side: str, first: Tensor | None) -> None:
        shape = () if first is None else tuple(first.shape)
        self._shapes.setdefault((self._name, side), []).append(shape)


def _watch(
    name: str, module: nn.Module, shapes: dict[tuple[str, str], list[Shape]]
) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(_Watcher(name, shapes), with_kwargs=True)
