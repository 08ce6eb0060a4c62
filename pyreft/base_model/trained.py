"""Parts of the base model that are trained with the interventions, such as a classifier's head.

They are trained in place and belong to the adapter: they are saved and removed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class TrainedModules(nn.Module):
    """The modules and parameters of a base model that an adapter names in `modules_to_save`.

    Their original values are stored, so that the bare base model can be run and returned.

    Args:
        base: The base model.
        names: Names of modules or parameters, or suffixes of such names, as in PEFT.

    Attributes:
        names: The full names that were found.

    Raises:
        ValueError: If nothing has such a name, or the named part shares a weight with the rest.
    """

    def __init__(self, base: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        # In a list, so that the base model is not a submodule of this one.
        self._base = [base]
        found = [full for name in names for full in _find(base, name)]
        self.names = list(dict.fromkeys(found))
        tensor_names = _tensor_names(base, self.names)
        _refuse_shared(base, tensor_names)
        # One name per tied tensor: swapping it twice would undo the swap.
        by_tensor = {id(_tensor(base, name)): name for name in reversed(tensor_names)}
        self._tensor_names = list(reversed(by_tensor.values()))
        self._swapped = False
        for index, tensor in enumerate(self.tensors().values()):
            # Buffers, so that they move along with the model.
            self.register_buffer(f"original_{index}", tensor.detach().clone(), persistent=False)
        self.enable_gradients()

    def extra_repr(self) -> str:
        return ", ".join(self.names)

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by their name in the base model."""
        return {name: _tensor(self._base[0], name) for name in self._tensor_names}

    def trained_values(self) -> dict[str, Tensor]:
        """The trained values of the named parts, also while the model has the original ones."""
        if not self._swapped:
            return self.tensors()
        return {n: self.get_buffer(f"original_{i}") for i, n in enumerate(self._tensor_names)}

    def enable_gradients(self) -> None:
        """Set `requires_grad` of the named parts, whatever else of the base model is frozen."""
        for tensor in self.tensors().values():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(True)

    def put_on(self) -> None:
        """Put the trained values into the base model, trainable again."""
        if self._swapped:
            self._swap()
        self.enable_gradients()

    def take_off(self) -> None:
        """Put back the original values of the named parts, frozen, until `put_on`."""
        if not self._swapped:
            self._swap()
        for tensor in self.tensors().values():
            tensor.requires_grad_(False)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Put back the original values of the named parts inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the original values of the named parts permanently, frozen like the rest."""
        for index, tensor in enumerate(self.tensors().values()):
            original = self.get_buffer(f"original_{index}")
            # If they are swapped now they will be swapped back, so both become the original.
            original.copy_(tensor) if self._swapped else tensor.copy_(original)
            tensor.requires_grad_(False)

    def _swap(self) -> None:
        # `.data`, so that autograd does not count it as a change for a pending backward pass.
        for index, tensor in enumerate(self.tensors().values()):
            original = self.get_buffer(f"original_{index}")
            tensor.data, original.data = original.data, tensor.data
        self._swapped = not self._swapped


def trained_by_hand(base: nn.Module, beside: Sequence[Tensor]) -> dict[str, Tensor]:
    """Parameters of the base model that require a gradient without being named anywhere.

    Scripts written for upstream set `requires_grad` of the head themselves.

    Args:
        base: The base model.
        beside: Parameters that are saved elsewhere.
    """
    known = {tensor.data_ptr() for tensor in beside}
    trainable = ((n, p) for n, p in base.named_parameters() if p.requires_grad)
    return {name: parameter for name, parameter in trainable if parameter.data_ptr() not in known}


def remember_requires_grad(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores the present `requires_grad` of all parameters."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)

    return restore


def lies_in(name: str, parts: Sequence[str]) -> bool:
    """Whether a tensor is one of the named parts of a model, or inside one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _find(base: nn.Module, name: str) -> list[str]:
    """The full names that equal `name`, or else those that end with it."""
    modules = [full for full, _ in base.named_modules() if full]
    for names in (modules, [full for full, _ in base.named_parameters()]):
        exact = [full for full in names if full == name]
        if found := exact or [full for full in names if full.endswith(f".{name}")]:
            return found
    top = ", ".join(child for child, _ in base.named_children())
    raise ValueError(
        f"{type(base).__name__} has no module {name!r} to train and save. Its parts are {top}; see "
        "named_modules() of the model."
    )


def _tensor_names(base: nn.Module, names: Sequence[str]) -> list[str]:
    """The parameters and saved buffers of named modules, each once."""
    tensors = tensors_in(base, names)
    for name in names:
        if not any(lies_in(full, [name]) for full in tensors):
            raise ValueError(
                f"{name!r} of modules_to_save has no parameters, so there is nothing to train."
            )
    return list(tensors)


def tensors_in(base: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """The parameters and saved buffers of named parts of a model, by name.

    No other part is asked for its weights: bitsandbytes converts those of 4 bits in `state_dict`,
    on a CPU with AVX-512 BF16, and what is converted twice is lost.
    """
    modules = dict(base.named_modules(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for name in parts:
        parent, _, last = name.rpartition(".")
        if name in modules:
            found |= modules[name].state_dict(keep_vars=True, prefix=f"{name}.")
        elif isinstance(tensor := getattr(modules.get(parent), last, None), Tensor):
            found[name] = tensor
    return found


def _refuse_shared(base: nn.Module, names: Sequence[str]) -> None:
    by_tensor: dict[int, list[str]] = {}
    for full, parameter in base.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(full)
    for group in by_tensor.values():
        named = [full for full in group if full in names]
        if named and len(named) < len(group):
            other = next(full for full in group if full not in named)
            raise ValueError(
                f"cannot train {named[0]} of the base model: it is the same tensor as {other}, "
                "which would change as well. Load the model with tie_word_embeddings=False."
            )


def _tensor(base: nn.Module, name: str) -> Tensor:
    module, _, last = name.rpartition(".")
    found: Tensor = getattr(base.get_submodule(module), last)
    return found
