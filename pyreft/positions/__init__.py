"""A position spec, "f7+l7" -> the tokens of a batch that an intervention edits."""

from pyreft.positions.spec import PositionSpec
from pyreft.positions.tokens import NO_POSITION, Tokens
from pyreft.positions.words import register_position

__all__ = ["NO_POSITION", "PositionSpec", "Tokens", "register_position"]
