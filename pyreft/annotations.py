"""Names for the dictionaries that go from one room to the next; for annotations alone."""

from collections.abc import Mapping
from typing import Any, TypeAlias

# What a model is called with, by the name of the argument: tensors, and settings.
Inputs: TypeAlias = dict[str, Any]
# Arguments of a call that are read and not changed.
Arguments: TypeAlias = Mapping[str, Any]
# A row of a data set, by column; and the rows of a batch, column by column.
Example: TypeAlias = dict[str, Any]
Columns: TypeAlias = dict[str, list[Any]]
# An object of JSON.
Json: TypeAlias = dict[str, Any]
