"""Skip layers whose output is known or not needed.

layer S - 2      returns its input
layer S - 1      returns the known hidden state        hooks on it run, and edit it
layer S          runs
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

# A replacement of `forward` of a module.
Forward: TypeAlias = Callable[..., object]
# The output of a layer: the hidden state, or a tuple that begins with it.
Output: TypeAlias = Tensor | tuple[Tensor | None, ...]

# Only one thread at a time replaces `forward` of modules.
_REPLACING = threading.RLock()


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replace `forward` of modules by these, in this thread, inside the block."""
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
    """The form of layers' outputs: the hidden state, or a tuple that begins with it.

    It is read from one output; all layers of a model return the same form.
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
        """A `forward` that returns its input."""

        def forward(*args: object, **kwargs: object) -> Output:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return self.of(next(given))

        return forward

    def returning(self, hidden: Tensor) -> Forward:
        """A `forward` that returns this hidden state for any input."""
        return lambda *args, **kwargs: self.of(hidden)
