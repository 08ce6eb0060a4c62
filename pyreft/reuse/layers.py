"""Layers that do not run: what they would return is known, or not needed.

layer S - 2      hands on what it gets
layer S - 1      returns the known hidden state        hooks on it run, and edit it
layer S          runs
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# `forward` of a module belongs to one thread at a time.
_REPLACING = threading.RLock()


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
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


def _in_thread(
    thread: int, forward: Callable[..., Any], original: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        here = forward if threading.get_ident() == thread else original
        return here(*args, **kwargs)

    return run


class LayerOutput:
    """What layers return: the hidden state, or a tuple that begins with it.

    Found by watching one; all layers of a model are alike.
    """

    def __init__(self) -> None:
        self._size: int | None = None

    def hidden(self, output: Any) -> Tensor:
        """The hidden state in the output of a layer that ran."""
        several = isinstance(output, tuple)
        self._size = len(output) if several else None
        return output[0] if several else output

    def of(self, hidden: Tensor) -> Any:
        """The output of a layer with this hidden state."""
        return hidden if self._size is None else (hidden, *[None] * (self._size - 1))

    def handing_on(self) -> Callable[..., Any]:
        """A `forward` that returns what it gets."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return self.of(next(given))

        return forward

    def putting_out(self, hidden: Tensor) -> Callable[..., Any]:
        """A `forward` that returns this hidden state, whatever it gets."""
        return lambda *args, **kwargs: self.of(hidden)
