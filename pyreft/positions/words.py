"""The words of position specs. A word is one class: it parses, prints and selects.

    f<n>          the first n tokens of the prompt          First
    l<n>          the last n tokens of the prompt           Last
    prompt        every token of the prompt                 Prompt
    completion    every token after it, generated ones too  Completion
    <index>       tokens of the prompt; -1 is its last      At
    <name>        what a registered function returns        Chosen, in `functions`
    <kind>        image, text, patch ... tokens             OfKind, in `kinds`
    rows<a>-<b>   lines of the patches of a picture         Box, in `boxes`

Nothing else names them: a new word is a subclass of `Word`. The order of the classes is the
order of the parts of a spec, and so of untied interventions in files: new ones come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from pyreft.positions.spans import Ends, Span
from pyreft.positions.tokens import Tokens

WORDS: list[type[Word]] = []


class Word:
    """A part of a position spec.

    Attributes:
        syntax, meaning: For messages: how it is written, and what it edits.
        reads_prompt: Whether it needs a prompt to select anything.
        several: Whether a spec may have several different ones.
    """

    syntax: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    reads_prompt: ClassVar[bool] = True
    several: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "syntax" in vars(cls):
            WORDS.append(cls)

    @property
    def sorted_by(self) -> str:
        """The name by which several of a class are sorted."""
        return str(self) if self.several else ""

    @classmethod
    def parse(cls, text: str) -> Word | None:
        """Parse a part of a spec; None if it is another word.

        Raises:
            ValueError: If it is this word, and selects nothing.
        """
        raise NotImplementedError

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        """(B, T) bool, the tokens of a batch.

        Args:
            tokens: The batch.
            ends: See `PositionSpec.select`.

        Raises:
            ValueError: If a position is outside the prompt.
        """
        raise NotImplementedError

    def spans(self) -> tuple[Span, ...]:
        """The spans of its tokens in a long prompt, as far as they are known."""
        return ()

    def ends(self) -> Ends:
        """The number of tokens that it selects at the ends of the prompt."""
        return Ends()

    def only(self) -> str | None:
        """The kind of tokens that it selects; None if it may be any."""
        return None

    def alone(self) -> list[Word]:
        """The words that have their own weights if weights are not tied."""
        return [self]

    def merged(self, others: Sequence[Word]) -> Word | None:
        """One word for this and others of its class; None if a spec may have it only once."""
        return self if all(self == other for other in others) else None


@dataclass(frozen=True)
class _Counted(Word):
    """A letter and how many tokens."""

    count: int
    letter: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Word | None:
        if not (match := re.fullmatch(f"{cls.letter}([0-9]+)", text)):
            return None
        if not (count := read_index(int(match[1]))):
            raise ValueError("selects nothing")
        return cls(count)

    def __str__(self) -> str:
        return f"{self.letter}{self.count}"

    def merged(self, others: Sequence[Word]) -> Word | None:
        return None


class First(_Counted):
    syntax, meaning, letter = "f<n>", "first n prompt tokens", "f"

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        n = tokens.prompt_length
        short = n < ends.first + ends.last
        count = torch.where(short, (n // 2).clamp(max=self.count), self.count)
        return tokens.prompt & (tokens.index < count)

    def spans(self) -> tuple[Span, ...]:
        return (Span("start", 0, self.count),)

    def ends(self) -> Ends:
        return Ends(first=self.count)


class Last(_Counted):
    syntax, meaning, letter = "l<n>", "last n prompt tokens", "l"

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        n = tokens.prompt_length
        short = n < ends.first + ends.last
        count = torch.where(short, ((n + 1) // 2).clamp(max=self.count), self.count)
        return tokens.prompt & (tokens.index >= n - count)

    def spans(self) -> tuple[Span, ...]:
        return (Span("end", -self.count, 0),)

    def ends(self) -> Ends:
        return Ends(last=self.count)


@dataclass(frozen=True)
class _Region(Word):
    """All of a part of the text."""

    @classmethod
    def parse(cls, text: str) -> Word | None:
        return cls() if text == cls.syntax else None

    def __str__(self) -> str:
        return self.syntax

    def spans(self) -> tuple[Span, ...]:
        return (Span(self.syntax),)


class Completion(_Region):
    syntax, meaning, reads_prompt = "completion", "every token after the prompt", False

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        return tokens.completion


class Prompt(_Region):
    syntax, meaning = "prompt", "every token of the prompt"

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        return tokens.prompt


@dataclass(frozen=True)
class At(Word):
    """Explicit indices of prompt tokens, each once, in the order of a long prompt."""

    indices: tuple[int, ...]

    syntax, meaning = "<index>", "a token of the prompt, negative from its end"

    @classmethod
    def of(cls, indices: Iterable[Integral | int]) -> At:
        """Indices in any order."""
        read = {read_index(index) for index in indices}
        return cls(tuple(sorted(read, key=lambda index: (index < 0, index))))

    @classmethod
    def parse(cls, text: str) -> Word | None:
        return cls.of([int(text)]) if re.fullmatch(r"-?[0-9]+", text) else None

    def __str__(self) -> str:
        return "+".join(map(str, self.indices))

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        shortest = int(tokens.prompt_length.min())
        for index in self.indices:
            if not -shortest <= index < shortest:
                row = f" of row {int(tokens.prompt_length.argmin())}"
                raise ValueError(
                    f"position {index} is outside {tokens.name}"
                    f"{row if len(tokens.prompt) > 1 else ''}, which has {shortest} tokens: "
                    f"positions go from {-shortest} to {shortest - 1}."
                )
        wanted = torch.tensor(self.indices, device=tokens.prompt.device)
        wanted = torch.where(wanted < 0, wanted + tokens.prompt_length, wanted)  # (B, P)
        return tokens.prompt & (tokens.index[:, :, None] == wanted[:, None, :]).any(-1)

    def spans(self) -> tuple[Span, ...]:
        anchors = (("end" if index < 0 else "start", index) for index in self.indices)
        return tuple(Span(anchor, index, index + 1) for anchor, index in anchors)

    def alone(self) -> list[Word]:
        return [At((index,)) for index in self.indices]

    def merged(self, others: Sequence[Word]) -> Word | None:
        more = [index for word in others if isinstance(word, At) for index in word.indices]
        return At.of((*self.indices, *more))


def parse_word(text: str) -> Word | None:
    """A part of a spec, parsed by the class that knows it; None if none does.

    Raises:
        ValueError: If it selects nothing.
    """
    for cls in WORDS:
        try:
            if (word := cls.parse(text)) is not None:
                return word
        except ValueError as error:
            raise ValueError(f"{text!r} {error}") from None
    return None


def describe_grammar() -> str:
    """The grammar of a spec, for errors."""
    plain = ", ".join(sorted((cls.syntax for cls in WORDS if "<" not in cls.syntax), reverse=True))
    written = [f"{cls.syntax} ({cls.meaning})" for cls in WORDS if "<" in cls.syntax]
    counted = ", ".join(one for one in written if "<n>" in one)
    others = ", ".join(one for one in written if "<n>" not in one)
    return (
        f'a position spec is parts joined by "+": {counted}, {plain}, all (these two), {others}; '
        'for example "f7+l7", "l1", "prompt", [0, -1]'
    )


def read_index(index: Integral | int) -> int:
    """The index as an int.

    Raises:
        ValueError: If no text is that long.
    """
    if not -(2**31) < int(index) < 2**31:
        raise ValueError(f"the position {index} is beyond any text; {describe_grammar()}.")
    return int(index)
