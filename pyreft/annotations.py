"""Names of types: of the dictionaries that go from one room to the next, and of a class method."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

# What a model is called with, by the name of the argument: tensors, and settings.
Inputs: TypeAlias = dict[str, Any]
# Arguments of a call that are read and not changed.
Arguments: TypeAlias = Mapping[str, Any]
# A row of a data set, by column; and the rows of a batch, column by column.
Example: TypeAlias = dict[str, Any]
Columns: TypeAlias = dict[str, list[Any]]
# An object of JSON.
Json: TypeAlias = dict[str, Any]

if TYPE_CHECKING:
    C = TypeVar("C")
    P = ParamSpec("P")

    class ClassMethod(Generic[P]):
        """`classmethod` for a function of a module that returns an instance of the class.

        Type checkers do not infer that type from `classmethod` itself.
        """

        def __init__(self, function: Callable[Concatenate[type[C], P], C]) -> None: ...

        def __get__(self, instance: object, owner: type[C]) -> Callable[P, C]: ...

else:
    ClassMethod = classmethod
