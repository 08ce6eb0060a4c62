"""The interface of interventions for scripts written for upstream and pyvene."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyreft.annotations import Arguments, Inputs

if TYPE_CHECKING:
    from typing_extensions import Self

# Arguments of pyvene's base class and of upstream's rotation, and the values that change nothing.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "init_orth": (True,),
    "keep_last_dim": (True, False),
    "use_fast": (True, False),
    "subspace_partition": (None,),
    "source_representation": (None,),
    "hidden_source_representation": (None,),
}
# pyvene's classes that are base classes of all our kinds.
_OF_PYVENE = (
    "SourcelessIntervention",
    "TrainableIntervention",
    "DistributedRepresentationIntervention",
)


class UpstreamInterventionMixin(nn.Module):
    """Upstream's calling conventions of an intervention.

    Attributes:
        given: The arguments of the constructor, by name. They are recorded because constructors
            in upstream's style take `**kwargs`.
        given_more: Whether there were more positional arguments, for `*args`.
    """

    given: Inputs
    given_more: bool

    # Attributes of an intervention that pyvene reads.
    trainable = True
    is_source_constant = True
    is_repr_distributed = True
    keep_last_dim = True
    use_fast = False
    subspace_partition = None
    source_representation = None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        join_pyvene()
        made = super().__new__(cls)
        # Set in `__dict__`, because nn.Module has not been initialized yet.
        given, more = _read_call(cls, args, kwargs)
        made.__dict__.update(given=given, given_more=more)
        return made

    def __getitem__(self, index: int) -> Self:
        """The module itself at 0: before 0.1.8, pyvene stored pairs of a module and its hook."""
        if index != 0:
            raise IndexError(f"only the module itself exists, at [0]; got [{index}].")
        return self

    def edit_nothing(self) -> None:
        """Set the parameters so that the edit is zero; kinds that can do so override this.

        Raises:
            ValueError: If this kind does not.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how it edits nothing: define edit_nothing() in it."
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's state dict; without arguments, it also accepts upstream's keys."""
        found: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        return found if args or kwargs else _StateDict(found, _nearest_kind(self))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Like torch's; the keys may be upstream's, such as "rotate_layer", which is R^T.

        Raises:
            ValueError: If upstream's tensors do not fit, or its R is not orthonormal.
        """
        return super().load_state_dict(_our_tensors(self, state_dict), *args, **kwargs)


def _read_call(
    cls: type[nn.Module], args: tuple[object, ...], kwargs: Arguments
) -> tuple[Inputs, bool]:
    """The arguments of a constructor's call by name, and whether there were more by position.

    Empty if they do not fit; the constructor then raises. Arguments without effect are left out,
    and values that the constructor may change are copied.
    """
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except TypeError:
        return {}, False
    found: Inputs = {}
    more = False
    for name, parameter in list(bound.signature.parameters.items())[1:]:
        if parameter.kind == parameter.VAR_KEYWORD:
            found |= bound.arguments.get(name, {})
        elif parameter.kind == parameter.VAR_POSITIONAL:
            more = bool(bound.arguments.get(name))
        elif name in bound.arguments:
            found[name] = bound.arguments[name]
    plain = {n: value for n, value in found.items() if n not in _WITHOUT_EFFECT}
    copied = {n: deepcopy(v) if isinstance(v, (list, dict, set)) else v for n, v in plain.items()}
    return copied, more


def join_pyvene() -> None:
    """Make our interventions subclasses of pyvene's, for `isinstance`, if pyvene is imported.

    None of its code runs, because our constructors do not call its constructors.
    """
    theirs: Any = tuple(getattr(sys.modules.get("pyvene"), name, None) for name in _OF_PYVENE)
    if None not in theirs and UpstreamInterventionMixin.__bases__ != theirs:
        UpstreamInterventionMixin.__bases__ = theirs


def refuse_unknown(cls: type, extra: Arguments, known: list[str], strict: bool) -> None:
    """Check arguments of a constructor that a kind does not use.

    Args:
        cls: The class of the intervention.
        extra: The arguments.
        known: The arguments that it uses.
        strict: Whether any other is an error. False if a subclass passes on all its arguments,
            as upstream's do.

    Raises:
        TypeError: If an argument is unknown, or has a value that would have an effect.
    """
    for name, value in extra.items():
        if name in _WITHOUT_EFFECT:
            if value not in _WITHOUT_EFFECT[name]:
                raise TypeError(
                    f"{cls.__name__} takes {name}={_WITHOUT_EFFECT[name][0]!r}, as upstream's "
                    f"default has it; got {value!r}."
                )
        elif strict:
            close = get_close_matches(name, known, n=1)
            advice = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise TypeError(f"{cls.__name__} has no argument {name!r}. {advice}")


class _StateDict(OrderedDict[str, Tensor]):
    """A state dict that also accepts upstream's keys, without storing them."""

    def __init__(self, found: Mapping[str, Tensor] | None = None, kind: str | None = None) -> None:
        super().__init__(found or {})
        self._metadata = getattr(found, "_metadata", None)
        self._kind = kind

    def __missing__(self, key: str) -> Tensor:
        if self._kind is None:
            raise KeyError(key)
        from pyreft.interventions.upstream_tensors import write_intervention

        return write_intervention(self._kind, {}, self)[key]

    def __deepcopy__(self, memo: dict[int, object]) -> _StateDict:
        copied = _StateDict({n: deepcopy(value, memo) for n, value in self.items()}, self._kind)
        copied._metadata = deepcopy(self._metadata, memo)
        return copied

    def __reduce__(self) -> tuple[object, ...]:
        # Pickled as a plain state dict.
        return OrderedDict, (), {"_metadata": self._metadata}, None, iter(self.items())


def _our_tensors(module: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Convert a state dict with upstream's or our names to our names."""
    kind = _nearest_kind(module)
    names = [str(name) for name in state_dict] if isinstance(state_dict, Mapping) else []
    theirs = "rotate_layer" in names or any(".parametrizations." in name for name in names)
    if not theirs or kind is None:
        return state_dict
    from pyreft.interventions.upstream_tensors import read_intervention

    found, _, tensors = read_intervention(kind, state_dict)
    if found != kind:
        raise ValueError(
            f"the rows of its R are not orthonormal, so it is no {type(module).__name__}: upstream "
            f"changes them when it trains after loading. Load it into the kind {found!r}."
        )
    return tensors


def _nearest_kind(module: nn.Module) -> str | None:
    """The built-in kind of a module, or that its class derives from."""
    from pyreft.interventions.registry import intervention_class
    from pyreft.interventions.shapes import KINDS

    return next((kind for kind in KINDS if isinstance(module, intervention_class(kind))), None)


join_pyvene()
