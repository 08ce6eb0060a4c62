"""Where a hidden state is, in transformers' layer and in the engine's.

transformers    layer(hidden)                  -> hidden
vLLM            layer(positions, h, residual)  -> h, residual        hidden = h + residual
                projections of one input are one module              q | k | v
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pyreft.annotations import Inputs
from pyreft.base_model.stacks import find_layers
from pyreft.editing.edits import SiteEdits, edit_tokens
from pyreft.installed.vllm import is_missing_layer, sizes_of_qkv
from pyreft.placement.targets import Target

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

# The outputs of these are parts of one module of the engine.
_JOINED = ("q_proj", "k_proj", "v_proj")
_JOINED_NAME = "qkv_proj"


@dataclass(frozen=True)
class Place:
    """A hidden state in a layer.

    Args:
        layer: The index of the layer.
        path: The module in the layer, "" for the layer itself.
        side: "input" or "output" of the module.
        sharded: Whether tensor parallel processes have a part of it each.
        width: D.
    """

    layer: int
    path: str
    side: str
    sharded: bool
    width: int


def place_of(base: PreTrainedModel, target: Target) -> Place:
    """The place of a target.

    Raises:
        ValueError: If it is in no layer, or the engine has no such hidden state.
    """
    component, where = target.component, target.config.place
    for index, layer in enumerate(find_layers(base, None)):
        names = (name for name, module in layer.named_modules() if module is component.module)
        name = next(names, None)
        if name is None:
            continue
        last, width = name.rpartition(".")[2], component.width
        if "act" in last or last in ("gate_proj", "up_proj") or width is None:
            raise ValueError(
                f"{where} cannot be served: the engine computes the activation and the product "
                "around it in one step"
            )
        if last in _JOINED and component.side == "input":
            raise ValueError(f"{where} cannot be served: the engine has one input for q, k and v")
        inner = "." in name and not (name.endswith("o_proj") and component.side == "output")
        return Place(index, name, component.side, inner, width)
    raise ValueError(f"{where} cannot be served: it is in no layer")


class PlaceHooks:
    """Hooks at the places of a model of the engine, for one step.

    Args:
        layers: The layers of the engine's model.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers

    def require(self, place: Place, processes: int) -> None:
        """Raise ValueError if the engine's model does not have the hidden state.

        Args:
            place: The place.
            processes: The number of tensor parallel processes.
        """
        if place.sharded and processes > 1:
            raise ValueError(
                f"{place.path}.{place.side} is divided among {processes} tensor parallel "
                "processes, so an edit of all of it cannot be served"
            )
        self._find(place)

    @contextmanager
    def editing(self, edits: Mapping[Place, Sequence[SiteEdits]]) -> Iterator[None]:
        """Edit at these places in the forward pass inside the block.

        Raises:
            RuntimeError: If a place is not reached in it.
        """
        reached: set[Place] = set()
        with ExitStack() as handles:
            for place, several in edits.items():
                handles.callback(self._add(place, several, reached).remove)
            yield
        if missed := sorted(place.path for place in edits.keys() - reached):
            raise RuntimeError(f"the engine's model does not run {missed[0]!r} of its layers.")

    def _add(
        self, place: Place, edits: Sequence[SiteEdits], reached: set[Place]
    ) -> RemovableHandle:
        module, part = self._find(place)
        if place.side == "input":

            def before(
                module: nn.Module, args: tuple[object, ...], kwargs: Inputs
            ) -> tuple[tuple[object, ...], Inputs]:
                reached.add(place)
                return _edit_inputs(edits, args, kwargs, place.width)

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            reached.add(place)
            _edit_outputs(edits, output, part, whole=place.path == "")

        return module.register_forward_hook(after)

    def _find(self, place: Place) -> tuple[nn.Module, slice]:
        layer = self._layers[place.layer]
        if is_missing_layer(layer):
            raise ValueError(f"layer {place.layer} is in another process, of a pipeline")
        parent, _, last = place.path.rpartition(".")
        around = _descend(layer, parent, place)
        if last in _JOINED and not hasattr(around, last) and hasattr(around, _JOINED_NAME):
            joined: nn.Module = getattr(around, _JOINED_NAME)
            sizes = sizes_of_qkv(joined)
            start = sum(sizes[: _JOINED.index(last)])
            return joined, slice(start, start + sizes[_JOINED.index(last)])
        return _descend(layer, place.path, place), slice(None)


def _descend(layer: nn.Module, path: str, place: Place) -> nn.Module:
    try:
        return layer.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"{place.path}.{place.side} cannot be served: the engine's {type(layer).__name__} has "
            f"no module {path!r}, but {', '.join(name for name, _ in layer.named_children())}"
        ) from error


def _edit_inputs(
    edits: Sequence[SiteEdits], args: tuple[object, ...], kwargs: Inputs, width: int
) -> tuple[tuple[object, ...], Inputs]:
    """Edit the first hidden state among the arguments; a second one is its residual."""
    given = [*enumerate(args), *kwargs.items()]
    found = [(key, v) for key, v in given if isinstance(v, Tensor) and v.is_floating_point()]
    found = [(key, value.clone()) for key, value in found if value.shape[-1] == width][:2]
    if not found:
        raise ValueError(f"no hidden state of width {width} is among the arguments of a layer")
    changed = dict(found)
    for one in edits:
        edit_tokens(one, *(value for _, value in found))
    listed = tuple(changed.get(index, value) for index, value in enumerate(args))
    return listed, {key: changed.get(key, value) for key, value in kwargs.items()}


def _edit_outputs(edits: Sequence[SiteEdits], output: object, part: slice, whole: bool) -> None:
    """Edit the output of a module in place; that of a layer may have a residual beside it."""
    several = output if isinstance(output, tuple) else (output,)
    hidden = several[0]
    assert isinstance(hidden, Tensor)
    beside = several[1] if whole and len(several) > 1 else None
    residual = beside if isinstance(beside, Tensor) and beside.shape == hidden.shape else None
    for one in edits:
        edit_tokens(one, hidden[..., part], residual)
