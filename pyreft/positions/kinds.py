"""The words of position specs that name a kind of tokens, such as those of a picture.

image       every image token of the prompt
text        every other token of it
image:f7    the first 7 of the image tokens; f<n>, l<n> and <index> can be written there
class       the class token of a model of pictures; register and patch likewise
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyreft.positions.spans import Ends, Span
from pyreft.positions.tokens import Tokens
from pyreft.positions.words import At, First, Last, Word, parse_word

# In a text: what its ids say. In a tower: the tokens that the model adds, and those of its input.
KINDS = ("text", "image", "video", "audio", "class", "register", "patch", "frame")


@dataclass(frozen=True)
class OfKind(Word):
    """The tokens of a kind, or those of them that another word selects.

    Args:
        kind: One of `KINDS`.
        word: Which of them, counted among them alone; None for all.
    """

    kind: str
    word: Word | None = None

    syntax, several = "<kind>", True
    meaning = f"{', '.join(KINDS)} tokens, or image:f7, the first 7 of those"

    @classmethod
    def parse(cls, text: str) -> Word | None:
        kind, colon, part = text.partition(":")
        if kind not in KINDS:
            return None
        word = parse_word(part) if colon else None
        if colon and not isinstance(word, (First, Last, At)):
            raise ValueError(f"has no f<n>, l<n> or <index> after {kind}:")
        return cls(kind, word)

    def __str__(self) -> str:
        if self.word is None:
            return self.kind
        return "+".join(f"{self.kind}:{one}" for one in self.word.alone())

    def select(self, tokens: Tokens, ends: Ends) -> Tensor:
        inside = tokens.of_kind(self.kind)
        if self.word is None:
            return inside.prompt
        return self.word.select(inside, ends.of_kind(self.kind))

    def spans(self) -> tuple[Span, ...]:
        inside = (Span("prompt"),) if self.word is None else self.word.spans()
        return tuple(span._replace(kind=self.kind) for span in inside)

    def only(self) -> str:
        return self.kind

    def ends(self) -> Ends:
        inside = Ends() if self.word is None else self.word.ends()
        return Ends(within=((self.kind, inside),) if inside != Ends() else ())
