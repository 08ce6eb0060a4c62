"""Layers that do not run: what they would return is known, or not needed.

layer S - 2      returns what it gets
layer S - 1      returns the known hidden state        hooks on it run, and edit it
layer S          runs
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

# What runs as `forward` of a module.
Forward: TypeAlias = Callable[..., object]
# What a layer returns: the hidden state, or a tuple that begins with it.
Output: TypeAlias = Tensor | tuple[Tensor | None, ...]

# `forward` of a module belongs to one thread at a time.
_REPLACING = threading.RLock()


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Run these in place of `forward` of modules, in this thread, inside the block."""
    with _REPLACING:
        saved = {module: vars(module).get("forward") for module in forwards}
        for module, forward in forwards.items():
            module.forward = _in_thread(threading.get_ident(), forward, module.forward)
        try:
            yield
        finally:
            for module, own in saved.items():
                if own is None:
                    del module.forward
                else:
                    module.forward = own


def _in_thread(thread: int, forward: Forward, original: Forward) -> Forward:
    def run(*args: object, **kwargs: object) -> object:
        here = forward if threading.get_ident() == thread else original
        return here(*args, **kwargs)

    return run


class LayerOutput:
    """What layers return: the hidden state, or a tuple that begins with it.

    Found by watching one; all layers of a model are alike.
    """

    def __init__(self) -> None:
        self._size: int | None = None

    def hidden(self, output: Output) -> Tensor:
        """The hidden state in the output of a layer that ran."""
        if isinstance(output, Tensor):
            self._size = None
            return output
        self._size = len(output)
        assert output[0] is not None
        return output[0]

    def of(self, hidden: Tensor) -> Output:
        """The output of a layer with this hidden state."""
        return hidden if self._size is None else (hidden, *[None] * (self._size - 1))

    def passing_through(self) -> Forward:
        """A `forward` that returns what it gets."""

        def forward(*args: object, **kwargs: object) -> Output:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return self.of(next(given))

        return forward

    def returning(self, hidden: Tensor) -> Forward:
        """A `forward` that returns this hidden state, whatever it gets."""
        return lambda *args, **kwargs: self.of(hidden)
