"""The arguments of a call that specify what to edit; the base model does not get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor

from pyreft.annotations import Arguments, Inputs
from pyreft.positions.counted_pad import count_from_text
from pyreft.positions.spec import Positions


@dataclass(frozen=True)
class EditArguments:
    """See `ReftModel.forward`.

    Args:
        completion_mask, intervention_locations, subspaces, adapter_names, positions: See there.
        in_order: Whether several interventions may edit one token, one after the other, as in
            upstream's convention.
    """

    completion_mask: Tensor | None = None
    intervention_locations: Tensor | None = None
    subspaces: object = None
    adapter_names: Sequence[str] | None = None
    positions: Positions | None = None
    in_order: bool = False

    @classmethod
    def take(cls, inputs: Inputs, names: Sequence[str] = ()) -> EditArguments:
        """Remove them from the arguments of a call; positions become indices of tokens.

        Args:
            inputs: The arguments of the call.
            names: Those to remove; all by default.

        Raises:
            TypeError: If one is misspelled without its last letter: a base model takes any name.
        """
        for name in _SINGULAR:
            if name in inputs:
                raise TypeError(f"there is no argument {name}, but {name}s.")
        found = {name: inputs.pop(name) for name in names or NAMES if name in inputs}
        taken, leading = cls(**found), inputs.pop("leading_pad", None)
        if leading is None:
            return taken
        locations = count_from_text(taken.intervention_locations, leading)
        return replace(taken, intervention_locations=locations)

    @property
    def choose_rows(self) -> bool:
        """Whether the call itself specifies what is edited in each row; it may be nothing."""
        return self.intervention_locations is not None or self.adapter_names is not None


NAMES = tuple(field.name for field in fields(EditArguments))
_SINGULAR = tuple(name.removesuffix("s") for name in NAMES if name.endswith("s"))


def present(arguments: Arguments) -> Inputs:
    """Those of the arguments of a call that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}
