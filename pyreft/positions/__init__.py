"""A position spec, "f7+l7" -> the tokens of a batch that an intervention edits."""

from pyreft.positions import boxes, kinds  # noqa: F401  # importing a file of words adds them
from pyreft.positions.functions import register_position
from pyreft.positions.spec import PositionSpec
from pyreft.positions.tokens import NO_POSITION, Kinds, Tokens

__all__ = ["NO_POSITION", "Kinds", "PositionSpec", "Tokens", "register_position"]
