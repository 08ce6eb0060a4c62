"""Undocumented attributes of torch's modules, tensors and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyreft.installed.fact import fact, require_found

_Module = TypeVar("_Module", bound=nn.Module)


@fact("torch")
def modules_list_hooks() -> None:
    """A module lists its hooks in _forward_hooks, _forward_pre_hooks, _backward_hooks and
    _backward_pre_hooks.
    """
    module = nn.Identity()
    module.register_forward_hook(lambda *args: None)
    module.register_forward_pre_hook(lambda *args: None)
    module.register_full_backward_hook(lambda *args: None)
    module.register_full_backward_pre_hook(lambda *args: None)
    require_found(len(list(hooks_of(module))), 4, "the number of hooks listed, of 4")
    require_found(len(list(forward_hooks_of(module))), 2, "the number of forward hooks, of 2")


def hooks_of(module: nn.Module) -> Iterator[Callable[..., object]]:
    """All hooks on a module."""
    for table in hook_tables(module):
        yield from table.values()


def hook_tables(module: nn.Module) -> list[dict[int, Callable[..., object]]]:
    """The hooks of each sort on a module, by number; a number is never given twice."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]


def forward_hooks_of(module: nn.Module) -> Iterator[Callable[..., object]]:
    """The hooks on a module that a forward pass calls."""
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()


def any_is_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether a forward pass of any of the modules calls a hook."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def others_see_outputs(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook that is not pyreft's reads the output of any of the modules."""
    hooked = (module._forward_hooks for module in modules)
    return any(not is_own(hook) for hooks in hooked if hooks for hook in hooks.values())


def is_own(hook: Callable[..., object]) -> bool:
    """Whether a hook is pyreft's."""
    return str(hook.__module__).startswith("pyreft.")


@fact("torch")
def modules_say_if_compiled() -> None:
    """A compiled module has _compiled_call_impl or is wrapped with an _orig_mod."""
    require_found(is_compiled(nn.Identity()), False, "a module that is not compiled")
    # The code is read, not run: the compiler takes seconds to import.
    names = nn.Module.compile.__code__.co_names
    require_found("_compiled_call_impl" in names, True, "whether compile() sets it")


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def any_is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether calls of any of the modules run compiled code."""
    return any(is_compiled(module) for module in modules)


def uncompiled(module: _Module) -> _Module:
    """The module that `torch.compile` wrapped; any other is returned as it is."""
    while (inner := getattr(module, "_orig_mod", None)) is not None:
        module = inner
    return module


@fact("torch")
def backward_has_an_id() -> None:
    """A backward pass has an id, which is -1 outside of one, and calls queued callbacks at its
    end.
    """
    seen: list[int] = []
    x = torch.zeros(1, device="cpu", requires_grad=True)
    y = x * 2

    def look(grad: Tensor) -> None:
        seen.append(current_backward())
        after_backward(lambda: seen.append(-2))

    register: Callable[[Callable[[Tensor], None]], object] = y.register_hook
    register(look)
    torch.autograd.backward(y)
    require_found(current_backward(), -1, "the id outside of a backward pass")
    if len(seen) != 2 or seen[0] < 0 or seen[1] != -2:
        raise ValueError(f"the id in a backward pass, and the callback's value, were {seen}")


def current_backward() -> int:
    """The id of the backward pass that is running in this thread, -1 if there is none."""
    return torch._C._current_graph_task_id()


def after_backward(callback: Callable[[], None]) -> None:
    """Queue a callback for the end of the backward pass that is running."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)


@fact("torch")
def tensors_count_writes() -> None:
    """A tensor counts the writes to it in _version."""
    tensor = torch.zeros(1, device="cpu")
    before = version_of(tensor)
    tensor.add_(1)
    require_found(version_of(tensor), before + 1, "the version after one write")


def versions_of(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor was written to, see `version_of`."""
    return [version_of(tensor) for tensor in tensors]


def version_of(tensor: Tensor) -> int:
    """The number of writes to a tensor; always 0 in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


@fact("torch")
def tensors_flatten() -> None:
    """A tensor that consists of others, as quantized weights do, names them in
    __tensor_flatten__.
    """
    from torch.nested import nested_tensor_from_jagged

    nested = nested_tensor_from_jagged(torch.ones(3, device="cpu"), torch.tensor([0, 1, 3]))
    require_found(len(stored_tensors([nested])), 2, "the number of tensors in a nested one")


def stored_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that hold the numbers of others: each itself, or those that it consists of."""
    found: list[Tensor] = []
    for tensor in tensors:
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is None:
            found.append(tensor)
            continue
        inner = (getattr(tensor, name) for name in flatten()[0])
        found += stored_tensors(one for one in inner if isinstance(one, Tensor))
    return found


@fact("torch")
def functions_name_saved_outputs() -> None:
    """A function of autograd names an output that it saves _saved_result or _saved_output, and a
    view can be recognized.
    """
    x = torch.zeros(2, 2, device="cpu", requires_grad=True)
    saved = [saves_output(y.grad_fn) for y in (x.exp(), x.tanh(), x.sigmoid(), x.softmax(-1))]
    require_found(saved, [True] * 4, "whether exp, tanh, sigmoid and softmax save theirs")
    require_found(saves_output((x + x).grad_fn), False, "whether a sum saves its own")
    require_found(is_view(x[0]), True, "whether a row is a view")


def saves_output(node: object) -> bool:
    """Whether a node of autograd may need its own output in the backward pass."""
    # Functions written in Python may keep anything.
    in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    return in_python or hasattr(node, "_saved_result") or hasattr(node, "_saved_output")


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view that autograd tracks."""
    return tensor._is_view()


def only_seen_here(module: nn.Module, output: Tensor) -> bool:
    """Whether nobody but the caller of a module sees what it returned, autograd included.

    False where that cannot be told.
    """
    if not (modules_list_hooks.holds and functions_name_saved_outputs.holds):
        return False
    if is_view(output) or others_see_outputs(module.modules()):
        return False
    if output.grad_fn is None:
        return not output.requires_grad
    return not saves_output(output.grad_fn)


@fact("torch")
def dropouts_have_a_base() -> None:
    """Dropout modules have a base class, with their rate in p."""
    require_found(dropout_rate(nn.Dropout(0.5)), 0.5, "the rate of Dropout(0.5)")
    require_found(dropout_rate(nn.Identity()), 0.0, "the rate of another module")


def dropout_rate(module: nn.Module) -> float:
    """The probability of dropping a value in training, 0.0 if the module is not a dropout."""
    return module.p if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
