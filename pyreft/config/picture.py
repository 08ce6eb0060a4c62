"""A picture of what an adapter edits: layers from left to right, the text from top to bottom.

    block_output
      layer                0    5    10   15   20   25
      prompt     first 7   aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
                 the rest  ..............................
                 last 7    bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
      completion           ..............................

    a  loreft of rank 8, weights of its own in each of 30 layers
    b  loreft of rank 8, weights of its own in each of 30 layers

It is text, so that it can be read in a terminal and compared in a diff.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from string import ascii_letters

from pyreft.config.groups import place_of
from pyreft.config.intervention import InterventionConfig, is_path
from pyreft.config.layer_counts import stack_named
from pyreft.positions import PositionSpec
from pyreft.positions.spans import Span
from pyreft.positions.words import Word
from pyreft.tables import printable

# Limits of the size, because files are untrusted.
MAX_LAYERS, MAX_ROWS = 160, 40
UNTOUCHED = "."
_SEVERAL = "#"
# A component and a layer, see `place_of`.
_Place = tuple[str, int | None]
# The anchors of spans of the prompt, and the parts of the text that are one span.
_ANCHORS, _WHOLE = ("start", "end"), ("prompt", "completion")


@dataclass(frozen=True)
class _Edit:
    """One intervention as it is drawn."""

    place: str
    layer: int | None
    positions: PositionSpec | None
    letter: str


@dataclass(frozen=True)
class _Row:
    """Tokens that are edited alike, and the letter in each layer."""

    region: str
    tokens: str
    cells: str


def draw(
    interventions: Sequence[InterventionConfig],
    layers: int | None = None,
    decoder_layers: int | None = None,
) -> str:
    """Draw what interventions edit: a grid for each component, and the meaning of the letters.

    Args:
        interventions: All of them, resolved.
        layers: Number of layers of the base model, of its encoder if it has one; None if unknown.
        decoder_layers: Number of layers of its decoder, if it has one beside an encoder.
    """
    places = [place_of(one) for one in interventions]
    letters = _letters(interventions, places)
    edits = [
        _Edit(*place, one.positions, letter)
        for one, place, letter in zip(interventions, places, letters, strict=True)
    ]
    grids = []
    for place in dict.fromkeys(edit.place for edit in edits):
        named = decoder_layers is not None and not is_path(place)
        in_decoder = named and stack_named(place) == "decoder"
        count = decoder_layers if in_decoder else layers
        # An encoder has no completion.
        reads_only = named and not in_decoder
        grids.append(_grid([e for e in edits if e.place == place], count, reads_only))
    legend = _legend(interventions, places, letters)
    if _SEVERAL in "".join(grids) and _SEVERAL not in letters:
        legend.append(f"{_SEVERAL}  several of them")
    return "\n\n".join([*grids, "\n".join(legend)])


# ---- one component -----------------------------------------------------------------------------


def _grid(edits: Sequence[_Edit], layers: int | None, reads_only: bool) -> str:
    highest = max((edit.layer + 1 for edit in edits if edit.layer is not None), default=0)
    count = max(layers or 0, highest) if highest else 1
    columns: list[int | None] = list(range(min(count, MAX_LAYERS))) if highest else [None]
    rows = _rows(edits, columns, reads_only)
    beside = max(len(row.tokens) for row in rows)
    lines = [edits[0].place]
    if highest:
        ruler = "".join(str(layer).ljust(5) for layer in range(0, len(columns), 5))
        lines.append(f"  {'layer':<10} {'':<{beside}}  {ruler.rstrip()}")
    region = ""
    for row in rows[:MAX_ROWS]:
        shown, region = "" if row.region == region else row.region, row.region
        lines.append(f"  {shown:<10} {row.tokens:<{beside}}  {row.cells}")
    if len(rows) > MAX_ROWS:
        lines.append(f"  ... and {len(rows) - MAX_ROWS} more rows")
    if count > len(columns):
        lines.append(f"  ... and {count - len(columns)} more layers to the right")
    return "\n".join(lines)


def _rows(edits: Sequence[_Edit], columns: Sequence[int | None], reads_only: bool) -> list[_Row]:
    rows = _prompt_rows(edits, columns)
    if not reads_only:
        there = [e for e in edits if e.positions is not None and e.positions.edits_completion]
        rows.append(_Row("completion", "", _cells(there, columns)))
    chosen: dict[str, list[_Edit]] = {}
    for edit in edits:
        words = () if edit.positions is None else edit.positions.words
        by = [_name(word) for word in words if not _is_placed(word)]
        for name in ["each batch"] if edit.positions is None else by:
            chosen.setdefault(printable(name), []).append(edit)
    if chosen and all(set(row.cells) == {UNTOUCHED} for row in rows):
        rows = []
    return rows + [_Row("chosen by", name, _cells(by, columns)) for name, by in chosen.items()]


def _prompt_rows(edits: Sequence[_Edit], columns: Sequence[int | None]) -> list[_Row]:
    """The rows of the prompt, cut at the ends of edits; equal neighbours are one row."""
    placed = [(edit, _spans(edit)) for edit in edits]
    spans = {span for _, found in placed for span in found if span.anchor in _ANCHORS}
    cuts = {0} | {cut for span in spans for cut in (span.first, span.stop) if cut is not None}
    ahead, behind = (sorted(c for c in cuts if sign * c >= 0) for sign in (1, -1))
    # (None, None) are the tokens between the ends, which have no fixed index.
    between: list[tuple[int | None, int | None]] = [
        *((first, end - 1) for first, end in pairwise(ahead)),
        (None, None),
        *((first, end - 1) for first, end in pairwise(behind)),
    ]
    drawn = [
        (*ends, _cells([edit for edit, found in placed if _covers(found, ends[0])], columns))
        for ends in between
    ]
    if len({cells for *_, cells in drawn}) == 1:
        return [_Row("prompt", "", drawn[0][2])]
    groups = groupby(drawn, key=lambda d: (d[0] is None, (d[0] or 0) < 0, d[2]))
    alike = [list(group) for _, group in groups]
    return [_Row("prompt", _tokens(group[0][0], group[-1][1]), group[0][2]) for group in alike]


def _covers(spans: Sequence[Span], first: int | None) -> bool:
    """Whether an edit of these spans is on the tokens from `first` to the next cut.

    None is between the ends.
    """
    if first is None:
        return any(span.anchor == "prompt" for span in spans)
    here = Span("start" if first >= 0 else "end", first, first + 1)
    near = (span for span in spans if span.anchor in (*_ANCHORS, "prompt"))
    return any(span.meets(here) for span in near)


def _spans(edit: _Edit) -> list[Span]:
    """The spans of an edit in a long prompt, as far as they are known."""
    words = () if edit.positions is None else edit.positions.words
    return [span for word in words for span in word.spans() if span.kind is None]


def _is_placed(word: Word) -> bool:
    """Whether a word has rows of its own in the picture of the prompt."""
    spans = word.spans()
    anchors = (*_ANCHORS, *_WHOLE)
    return bool(spans) and all(s.kind is None and s.anchor in anchors for s in spans)


def _name(word: Word) -> str:
    try:
        return str(word)
    except ValueError:
        return repr(getattr(word, "function", word))


def _tokens(first: int | None, last: int | None) -> str:
    """The name of the tokens of a row of the prompt."""
    if first is None or last is None:
        return "the rest"
    count = last - first + 1
    if first == 0 or last == -1:
        end = "first" if first == 0 else "last"
        return end if count == 1 else f"{end} {count}"
    return f"token {first}" if count == 1 else f"tokens {first} to {last}"


def _cells(edits: Iterable[_Edit], columns: Sequence[int | None]) -> str:
    by_layer: dict[int | None, set[str]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer, set()).add(edit.letter)
    shown = [by_layer.get(layer, {UNTOUCHED}) for layer in columns]
    return "".join(next(iter(letters)) if len(letters) == 1 else _SEVERAL for letters in shown)


# ---- letters -----------------------------------------------------------------------------------


def _letters(interventions: Sequence[InterventionConfig], places: Sequence[_Place]) -> list[str]:
    """The letter of each intervention: the same for equal descriptions, and for shared weights."""
    letters: list[str] = []
    known: dict[tuple[str, str, int], str] = {}
    at_place: Counter[_Place] = Counter()
    for one, place in zip(interventions, places, strict=True):
        if one.tied_to is not None and 0 <= one.tied_to < len(letters):
            letters.append(letters[one.tied_to])
            continue
        alike = (place[0], _describe(one), at_place[place])
        at_place[place] += 1
        new = ascii_letters[len(known)] if len(known) < len(ascii_letters) else _SEVERAL
        letters.append(known.setdefault(alike, new))
    return letters


def _describe(one: InterventionConfig) -> str:
    """The kind and its arguments that differ from the defaults."""
    chosen = {name: (one.arguments or {}).get(name) for name in ("dropout", "act_fn")}
    rank = one.low_rank_dimension
    said = one.kind if rank is None else f"{one.kind} of rank {rank}"
    return printable(said + "".join(f", {name} {value}" for name, value in chosen.items() if value))


def _legend(
    interventions: Sequence[InterventionConfig], places: Sequence[_Place], letters: Sequence[str]
) -> list[str]:
    lines = []
    for letter in dict.fromkeys(letters):
        group = [index for index, its in enumerate(letters) if its == letter]
        own = sum(interventions[index].tied_to is None for index in group)
        count = len({places[index] for index in group})
        said = "more of them" if letter == _SEVERAL else _describe(interventions[group[0]])
        if own == count > 1:
            said += f", weights of its own in each of {count} layers"
        elif own == 1 < count:
            said += f", the same weights at {count} places"
        elif own > 1:
            said += f", {own} sets of weights at {count} places"
        lines.append(f"{letter}  {said}")
    return lines
