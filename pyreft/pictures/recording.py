"""What goes through a module in a forward pass, before and after pyreft's edits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyreft.annotations import Arguments
from pyreft.base_model.outputs import hidden_of

# A function that is called with a hidden state, (B, T, D). It may not keep it: edits are in place.
See = Callable[[Tensor], None]


@contextmanager
def watching(
    module: nn.Module, side: str, unedited: See | None = None, edited: See | None = None
) -> Iterator[None]:
    """Show the hidden states of a module to functions, in this thread, inside the block.

    Args:
        module: The module.
        side: "input" or "output" of the module.
        unedited: Called before all hooks on the module.
        edited: Called after all hooks on the module.
    """
    handles = [
        _register(module, side, _in_thread(see), first)
        for see, first in ((unedited, True), (edited, False))
        if see is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _register(module: nn.Module, side: str, see: See, first: bool) -> RemovableHandle:
    if side == "output":
        return module.register_forward_hook(
            lambda module, args, output: see(_hidden_in(output)), prepend=first
        )

    def before(module: nn.Module, args: Sequence[object], kwargs: Arguments) -> None:
        see(_hidden_in([*args, *kwargs.values()]))

    return module.register_forward_pre_hook(before, prepend=first, with_kwargs=True)


def _in_thread(see: See) -> See:
    thread = threading.get_ident()

    def run(hidden: Tensor) -> None:
        if threading.get_ident() == thread:
            see(hidden)

    return run


def _hidden_in(values: object) -> Tensor:
    hidden = hidden_of(values)
    assert hidden is not None, "an edited module reads and returns a hidden state"
    return hidden
