"""A position spec, parsed once into an immutable object, and then applied to whole batches.

"f2+l1"   prompt  p p p p p | c c c     (padding anywhere is skipped)
edited            x x . . x | . . .
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor

from pyreft.positions.grammar import (
    GRAMMAR,
    REGIONS,
    PositionFunction,
    find_function,
    find_name,
    in_order,
    read_index,
    read_string,
)
from pyreft.positions.tokens import Tokens


@dataclass(frozen=True)
class PositionSpec:
    """An immutable, parsed position spec. Make one with `PositionSpec.parse`.

    Args:
        first: Number of tokens at the start of the prompt.
        last: Number of tokens at the end of the prompt.
        regions: Any of "prompt" and "completion".
        indices: Explicit positions in the prompt; negative ones count from its end.
        functions: Registered names, or functions, from `Tokens` to a (B, T) bool mask.
    """

    first: int = 0
    last: int = 0
    regions: frozenset[str] = frozenset()
    indices: tuple[int, ...] = ()
    # A function may get its name later, and a name another function.
    functions: tuple[str | PositionFunction, ...] = field(default=(), hash=False)

    @classmethod
    def parse(
        cls, spec: PositionSpec | str | int | Sequence[int] | PositionFunction
    ) -> PositionSpec:
        """Parse a string, an index, a sequence of indices or a function.

        Raises:
            ValueError: If the spec is empty or does not parse; the message shows the grammar.
            TypeError: If it is of another type.
        """
        if isinstance(spec, PositionSpec):
            return spec
        if isinstance(spec, str):
            return cls(**read_string(spec))
        if isinstance(spec, Integral) and not isinstance(spec, bool):
            return cls(indices=(read_index(spec),))
        if callable(spec):
            return cls(functions=(spec,))
        if isinstance(spec, Iterable) and not isinstance(spec, (bytes, Mapping)):
            indices = tuple(spec)
            if not indices:
                raise ValueError(f"the list of positions is empty; {GRAMMAR}.")
            if any(not isinstance(i, Integral) or isinstance(i, bool) for i in indices):
                raise TypeError(f"positions in a list must be integers, got {list(indices)!r}.")
            return cls(indices=in_order(read_index(i) for i in indices))
        raise TypeError(f"cannot read {spec!r} as positions; {GRAMMAR}.")

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; a function and its registered name do."""
        return isinstance(other, PositionSpec) and self._meaning() == other._meaning()

    def _meaning(self) -> tuple:
        functions = [find_function(function) for function in self.functions]
        return self.first, self.last, self.regions, self.indices, functions

    def __str__(self) -> str:
        """The spec in the grammar; raises ValueError for a function that has no name."""
        parts = [f"f{self.first}"] * bool(self.first) + [f"l{self.last}"] * bool(self.last)
        parts += ["all"] if self.edits_all else sorted(self.regions)
        parts += [str(index) for index in self.indices]
        for function in self.functions:
            if (name := find_name(function)) is None:
                raise ValueError(
                    f"the position function {function!r} has no name, so it cannot be saved; "
                    'register it with pyreft.register_position("name", function) and use the name.'
                )
            parts.append(name)
        return "+".join(parts)

    def __repr__(self) -> str:
        named = all(find_name(function) for function in self.functions)
        return f"PositionSpec({str(self) if named else self.functions!r})"

    def parts(self) -> list[PositionSpec]:
        """The specs whose sum this is, one for each set of weights if weights are not tied."""
        parts = [PositionSpec(first=self.first)] * bool(self.first)
        parts += [PositionSpec(last=self.last)] * bool(self.last)
        parts += [PositionSpec(regions=frozenset({region})) for region in sorted(self.regions)]
        parts += [PositionSpec(indices=(index,)) for index in self.indices]
        return parts + [PositionSpec(functions=(function,)) for function in self.functions]

    @property
    def edits_all(self) -> bool:
        """Whether every token is edited."""
        return self.regions == frozenset(REGIONS)

    @property
    def reads_prompt(self) -> bool:
        """Whether the spec needs a prompt to select anything."""
        return bool(self.first or self.last or self.indices or self.regions == {"prompt"})

    @property
    def edits_completion(self) -> bool:
        """Whether tokens after the prompt, and so generated ones, are edited."""
        return "completion" in self.regions

    def overlaps(self, other: PositionSpec) -> bool:
        """Whether both specs certainly choose a common token in some prompt that is long enough."""
        theirs = [find_function(function) for function in other.functions]
        if any(find_function(function) in theirs for function in self.functions):
            return True
        if self.edits_completion and other.edits_completion:
            return True
        if "prompt" in self.regions or "prompt" in other.regions:
            rest = other if "prompt" in self.regions else self
            return bool("prompt" in rest.regions or rest.first or rest.last or rest.indices)
        return bool(
            (self.first and other.first)
            or (self.last and other.last)
            or any(self._has(index) for index in other.indices)
            or any(other._has(index) for index in self.indices)
        )

    def _has(self, index: int) -> bool:
        """Whether an explicit position is one of this spec's, in a prompt that is long enough."""
        return index in self.indices or 0 <= index < self.first or -self.last <= index < 0

    def select(self, tokens: Tokens, site: tuple[int, int] | None = None) -> Tensor:
        """Choose this spec's tokens in a batch.

        A prompt of n < p + s tokens is too short for `f{p}+l{s}`: then min(p, floor(n / 2)) first
        and min(s, ceil(n / 2)) last tokens are chosen, so that none is chosen twice (Wu et al.
        2024, section 4).

        Args:
            tokens: The batch.
            site: (p, s) of everything that edits the same layer, where separate interventions
                hold the prefix and the suffix; this spec's own by default.

        Returns:
            (B, T) bool.

        Raises:
            ValueError: If a prompt is empty, an explicit position is outside a prompt, or a
                function's mask is not a (B, T) bool mask on tokens.
        """
        chosen = torch.zeros_like(tokens.prompt)
        if self.reads_prompt:
            _refuse_empty(self, tokens)
        if self.first or self.last:
            p, s = site if site is not None else (self.first, self.last)
            n = tokens.prompt_length
            short = n < p + s
            first = torch.where(short, (n // 2).clamp(max=self.first), self.first)
            last = torch.where(short, ((n + 1) // 2).clamp(max=self.last), self.last)
            chosen |= tokens.prompt & ((tokens.index < first) | (tokens.index >= n - last))
        if "prompt" in self.regions:
            chosen |= tokens.prompt
        if "completion" in self.regions:
            chosen |= tokens.completion
        if self.indices:
            chosen |= self._select_indices(tokens)
        for function in self.functions:
            chosen |= _select_by_function(function, tokens)
        return chosen

    def _select_indices(self, tokens: Tokens) -> Tensor:
        shortest = int(tokens.prompt_length.min())
        for index in self.indices:
            if not -shortest <= index < shortest:
                row = (
                    f" of row {int(tokens.prompt_length.argmin())}"
                    if len(tokens.prompt) > 1
                    else ""
                )
                raise ValueError(
                    f"position {index} is outside the prompt{row}, which has {shortest} tokens: "
                    f"positions go from {-shortest} to {shortest - 1}."
                )
        wanted = torch.tensor(self.indices, device=tokens.prompt.device)
        wanted = torch.where(wanted < 0, wanted + tokens.prompt_length, wanted)  # (B, P)
        return tokens.prompt & (tokens.index[:, :, None] == wanted[:, None, :]).any(-1)


def _refuse_empty(spec: PositionSpec, tokens: Tokens) -> None:
    if not bool((tokens.prompt_length > 0).all()):
        row = int(tokens.prompt_length.argmin())
        raise ValueError(
            f"the prompt of row {row} is empty, so {spec!r} has no position there. Labels that "
            "begin at the first token leave no prompt: set them to -100 on the prompt (data with a "
            "prompt and a completion, or a chat given to pyreft.make_examples), or choose the "
            'positions "all" or "completion".'
        )


def _select_by_function(function: str | PositionFunction, tokens: Tokens) -> Tensor:
    name = repr(function)
    chosen = find_function(function)(tokens)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        raise ValueError(f"position function {name} must return a bool tensor, got {chosen!r}.")
    if chosen.shape != tokens.prompt.shape:
        raise ValueError(
            f"position function {name} must return a mask of shape {tuple(tokens.prompt.shape)}, "
            f"got {tuple(chosen.shape)}."
        )
    if bool((chosen & ~tokens.prompt).any()):
        raise ValueError(
            f"position function {name} chose tokens outside the prompt. It is not asked about "
            'generated tokens: for those there are "completion" and "all".'
        )
    return chosen
