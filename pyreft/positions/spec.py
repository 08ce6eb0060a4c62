"""A position spec, parsed once into an immutable object and then applied to batches.

"f2+l1"   prompt  p p p p p | c c c     (padding anywhere is skipped)
edited            x x . . x | . . .

spec := word ("+" word)*, the words of `pyreft.positions.words`; "all" is prompt + completion
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor

from pyreft.positions.functions import Chosen, PositionFunction, registered_names
from pyreft.positions.spans import Ends, widest
from pyreft.positions.tokens import Tokens
from pyreft.positions.words import (
    WORDS,
    At,
    Completion,
    Prompt,
    Word,
    describe_grammar,
    parse_word,
)

_ALL = (Completion(), Prompt())
# What `PositionSpec.parse` accepts.
Positions: TypeAlias = "PositionSpec | str | int | Sequence[int] | PositionFunction"


@dataclass(frozen=True)
class PositionSpec:
    """An immutable, parsed position spec. Construct it with `PositionSpec.parse`.

    Args:
        words: Its parts in the order of the classes; at most one of each class, unless
            the class says that there may be several.
    """

    words: tuple[Word, ...]

    @classmethod
    def of(cls, *words: Word) -> PositionSpec:
        """A spec of words in any order; several words of one class are merged.

        Raises:
            ValueError: If a word is given twice that a spec may have only once.
        """
        groups: list[list[Word]] = []
        for word in words:
            same = (g for g in groups if type(g[0]) is type(word) and not _both(g[0], word))
            if (group := next(same, None)) is None:
                groups.append([word])
            else:
                group.append(word)
        found: list[Word] = []
        for first, *others in groups:
            if (merged := first.merged(others) if others else first) is None:
                raise ValueError(f"{str(others[0])!r} is given twice")
            found.append(merged)
        return cls(tuple(sorted(found, key=_order)))

    @classmethod
    def parse(cls, spec: Positions) -> PositionSpec:
        """Parse a string, an index, a sequence of indices or a function.

        Raises:
            ValueError: If the spec is empty or does not parse; the message shows the grammar.
            TypeError: If it is of another type.
        """
        if isinstance(spec, PositionSpec):
            return spec
        if isinstance(spec, str):
            return cls._parse_text(spec)
        if isinstance(spec, Integral) and not isinstance(spec, bool):
            return cls.of(At.of([spec]))
        if callable(spec):
            return cls.of(Chosen(spec))
        if isinstance(spec, Iterable) and not isinstance(spec, (bytes, Mapping)):
            indices = tuple(spec)
            if not indices:
                raise ValueError(f"the list of positions is empty; {describe_grammar()}.")
            if any(not isinstance(i, Integral) or isinstance(i, bool) for i in indices):
                raise TypeError(f"positions in a list must be integers, got {list(indices)!r}.")
            return cls.of(At.of(indices))
        raise TypeError(f"cannot read {spec!r} as positions; {describe_grammar()}.")

    @classmethod
    def _parse_text(cls, spec: str) -> PositionSpec:
        words: list[Word] = []
        try:
            for part in (part.strip() for part in spec.split("+")):
                words += _read(part)
            return cls.of(*words)
        except ValueError as error:
            raise ValueError(f"position spec {spec!r}: {error}; {describe_grammar()}.") from None

    def __str__(self) -> str:
        """The spec in the grammar; raises ValueError for a function that has no name."""
        shown = [str(word) for word in self.words if not (self.edits_all and word in _ALL)]
        if self.edits_all:
            place = next(i for i, word in enumerate(self.words) if word in _ALL)
            shown.insert(place, "all")
        return "+".join(shown)

    def __repr__(self) -> str:
        unnamed = tuple(w.function for w in self.words if isinstance(w, Chosen) and not w.name)
        return f"PositionSpec({unnamed or str(self)!r})"

    def parts(self) -> list[PositionSpec]:
        """The specs that add up to this one, one for each set of weights if they are not tied."""
        return [PositionSpec((alone,)) for word in self.words for alone in word.alone()]

    @cached_property
    def ends(self) -> Ends:
        """The number of tokens at the ends of the prompt."""
        return widest(word.ends() for word in self.words)

    @property
    def first(self) -> int:
        """The number of tokens at the start of the prompt."""
        return self.ends.first

    @property
    def last(self) -> int:
        """The number of tokens at the end of the prompt."""
        return self.ends.last

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The kinds of tokens that it names."""
        return frozenset(kind for word in self.words if (kind := word.only()) is not None)

    @cached_property
    def edits_all(self) -> bool:
        """Whether every token is edited."""
        return set(_ALL) <= set(self.words)

    @cached_property
    def edits_completion(self) -> bool:
        """Whether tokens after the prompt, and so generated tokens, are edited."""
        return _ALL[0] in self.words

    def overlaps(self, other: PositionSpec) -> bool:
        """Whether both specs certainly choose a common token in some prompt that is long enough."""
        if any(word in other.words for word in self.words if not word.spans()):
            return True
        ours, theirs = ([s for word in spec.words for s in word.spans()] for spec in (self, other))
        return any(one.meets(another) for one in ours for another in theirs)

    def select(self, tokens: Tokens, site: Ends | tuple[int, int] | None = None) -> Tensor:
        """Choose this spec's tokens in a batch.

        A prompt of n < p + s tokens is too short for `f{p}+l{s}`: then min(p, floor(n / 2)) first
        and min(s, ceil(n / 2)) last tokens are chosen, so that none is chosen twice (Wu et al.
        2024, section 4).

        Args:
            tokens: The batch.
            site: The ends (p, s) of all interventions on the same layer, if separate ones edit the
                prefix and the suffix; this spec's own by default.

        Returns:
            (B, T) bool.

        Raises:
            ValueError: If a prompt is empty, an explicit position is outside a prompt, or a
                function does not return a (B, T) bool mask on prompt tokens.
        """
        if not self.edits_all and any(word.reads_prompt for word in self.words):
            _refuse_empty(self, tokens)
        ends = self.ends if site is None else Ends(*site)
        chosen = torch.zeros_like(tokens.prompt)
        for word in self.words:
            chosen |= word.select(tokens, ends)
        return chosen


def _read(part: str) -> tuple[Word, ...]:
    if part == "all":
        return _ALL
    if (word := parse_word(part)) is not None:
        return (word,)
    names = registered_names()
    known = f" (registered functions: {', '.join(names)})" if names else ""
    raise ValueError(
        f"cannot read {part!r}{known}. Register a function of your own first, with "
        "pyreft.register_position"
    )


def _order(word: Word) -> tuple[int, str]:
    """The sort key: the order of the classes, then that of names."""
    return WORDS.index(type(word)), word.sorted_by


def _both(one: Word, other: Word) -> bool:
    """Whether a spec may have both of these words of one class."""
    return one.several and one != other


def _refuse_empty(spec: PositionSpec, tokens: Tokens) -> None:
    if not bool((tokens.prompt_length > 0).all()):
        row = int(tokens.prompt_length.argmin())
        raise ValueError(
            f"the prompt of row {row} is empty, so {spec!r} has no position there. Labels that "
            "begin at the first token leave no prompt: set them to -100 on the prompt (data with a "
            "prompt and a completion, or a chat given to pyreft.make_examples), or choose the "
            'positions "all" or "completion".'
        )
