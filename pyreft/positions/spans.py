"""What is known of the tokens of a word without a batch: where they are in a long prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """Contiguous tokens of a prompt that is long enough, or all of a part of the text.

    Args:
        anchor: What they are counted from: "start" or "end" of the prompt, or a word's own. Spans
            of different anchors have no token in common.
        first, stop: The half-open range of indices, negative before the anchor. None for all of
            the prompt, or of the completion.
        kind: The kind of tokens that are counted, None for all. Only the whole prompt has a token
            in common with those of every kind.
    """

    anchor: str
    first: int | None = None
    stop: int | None = None
    kind: str | None = None

    def meets(self, other: Span) -> bool:
        """Whether both contain a common token."""
        if self.kind != other.kind:
            return Span("prompt") in (self, other)
        outside = "completion" in (self.anchor, other.anchor)
        if outside or self.first is None or other.first is None:
            return not outside or self.anchor == other.anchor
        same, stops = self.anchor == other.anchor, (self.stop or 0, other.stop or 0)
        return same and max(self.first, other.first) < min(stops)


class Ends(NamedTuple):
    """The number of tokens at both ends of the prompt that all interventions of a layer edit.

    Args:
        first, last: The numbers.
        within: The ends of the tokens of one kind alone, with its name; none that are empty.
    """

    first: int = 0
    last: int = 0
    within: tuple[tuple[str, Ends], ...] = ()

    def of_kind(self, kind: str | None) -> Ends:
        """The ends of the tokens of one kind; None for those of the prompt itself."""
        if kind is None:
            return Ends(self.first, self.last)
        return dict(self.within).get(kind, Ends())


def widest(several: Iterable[Ends]) -> Ends:
    """The ends that contain all of these."""
    found = list(several)
    kinds = sorted({kind for ends in found for kind, _ in ends.within})
    within = tuple((kind, widest(ends.of_kind(kind) for ends in found)) for kind in kinds)
    first = max((ends.first for ends in found), default=0)
    return Ends(first, max((ends.last for ends in found), default=0), within)
