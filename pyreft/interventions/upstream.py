"""What scripts written for upstream, and pyvene beneath it, ask of an intervention."""

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
# pyvene's classes that every kind of ours is one of.
_OF_PYVENE = (
    "SourcelessIntervention",
    "TrainableIntervention",
    "DistributedRepresentationIntervention",
)


class UpstreamInterventionMixin(nn.Module):
    """Upstream's calling conventions of an intervention.

    Attributes:
        given: What the constructor was called with, by name. Constructors in upstream's style
            take `**kwargs`, from which nothing else could tell.
        given_more: Whether there were more by place, for `*args`.
    """

    given: Inputs
    given_more: bool

    # What pyvene reads of an intervention.
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
        # nn.Module has no dictionaries to register it in yet.
        given, more = _read_call(cls, args, kwargs)
        made.__dict__.update(given=given, given_more=more)
        return made

    def __getitem__(self, index: int) -> Self:
        """The module itself at 0: before 0.1.8, pyvene kept pairs of a module and its hook."""
        if index != 0:
            raise IndexError(f"there is the module alone, at [0]; got [{index}].")
        return self

    def edit_nothing(self) -> None:
        """Set the parameters so that the edit is zero; a kind that can do so says how.

        Raises:
            ValueError: If this one does not.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how it edits nothing: define edit_nothing() in it."
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's state dict; called on the module alone, its keys are upstream's as well."""
        found: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        return found if args or kwargs else _StateDict(found, _nearest_kind(self))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As torch's; the keys may be upstream's, such as "rotate_layer", which holds R^T.

        Raises:
            ValueError: If upstream's tensors do not fit, or its R is not orthonormal.
        """
        return super().load_state_dict(_our_tensors(self, state_dict), *args, **kwargs)


def _read_call(
    cls: type[nn.Module], args: tuple[object, ...], kwargs: Arguments
) -> tuple[Inputs, bool]:
    """The arguments of a constructor's call by name, and whether there were more by place.

    None if they do not fit, as the constructor will say. Those without effect are left out, and
    what the constructor may change is copied.
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
    """Make our interventions pyvene's as well, for `isinstance`, once a script has imported that.

    Of its code nothing runs: our constructors do not call its own.
    """
    theirs: Any = tuple(getattr(sys.modules.get("pyvene"), name, None) for name in _OF_PYVENE)
    if None not in theirs and UpstreamInterventionMixin.__bases__ != theirs:
        UpstreamInterventionMixin.__bases__ = theirs


def refuse_unknown(cls: type, extra: Arguments, known: list[str], strict: bool) -> None:
    """Check arguments of a constructor that a kind has no use for.

    Args:
        cls: The class of the intervention.
        extra: The arguments.
        known: Those that it has use for.
        strict: Whether any other is an error. Not so where a subclass hands on all that it is
            given, as upstream's do.

    Raises:
        TypeError: If an argument is unknown, or is known with another effect than none.
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
    """A state dict that answers to upstream's keys too, without having them."""

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
        # Whoever saves it has a plain state dict.
        return OrderedDict, (), {"_metadata": self._metadata}, None, iter(self.items())


def _our_tensors(module: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict in our names, whosever they are."""
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
            f"leaves them so after loading and training on. Load it into the kind {found!r}."
        )
    return tensors


def _nearest_kind(module: nn.Module) -> str | None:
    """The built-in kind that a module is, or derives from."""
    from pyreft.interventions.registry import intervention_class
    from pyreft.interventions.shapes import KINDS

    return next((kind for kind in KINDS if isinstance(module, intervention_class(kind))), None)


join_pyvene()
