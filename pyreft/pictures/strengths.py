"""Which tokens of a prompt are edited, at which layers, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pyreft.adapters.model import EditedModel
from pyreft.base_model.running import evaluating
from pyreft.pictures.colours import chip
from pyreft.pictures.edited import Site, edited_sites, for_base, label_sites, place_edits
from pyreft.pictures.prompt import read_prompt
from pyreft.pictures.recording import watching
from pyreft.pictures.tokens import visible
from pyreft.tables import Table, heading

if TYPE_CHECKING:
    from pyreft.pictures.figures import Picture

# Of a figure: rows, and columns up to which numbers are in the cells.
_MAX_ROWS, _MAX_NUMBERED = 60, 12
# Tokens beside edited ones that are drawn as well.
_BESIDE = 2
_MAX_CHARACTERS = 20_000


@dataclass(frozen=True, repr=False, eq=False)
class EditStrengths:
    """How strongly each token of a prompt is edited at each layer.

    In a notebook it is the prompt as text, each edited token on the colour of its strongest edit;
    `plot` draws tokens x layers.

    Args:
        tokens: The text of each of the T tokens, padding left out.
        sites: The label of each of the L edited hidden states: its layer; with the name of the
            component, if several are edited.
        strength: (T, L) float64, the norm of the edit over the norm of the hidden state, both
            Euclidean, measured in a forward pass; NaN where nothing is edited.
    """

    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    strength: Tensor

    @property
    def edited(self) -> Tensor:
        """(T, L) bool, the tokens that are edited at each hidden state."""
        return ~self.strength.isnan()

    def __repr__(self) -> str:
        rows = [
            [str(index), visible(self.tokens[index]), *map(_number, self.strength[index].tolist())]
            for index in self.edited.any(1).nonzero().flatten().tolist()
        ]
        return str(Table(["", "token", *self.sites], rows, ["", *self.sites]))

    def _repr_html_(self) -> str:
        highest, words, shown = self._highest(), [], 0
        strongest = self.strength.nan_to_num(nan=-1.0).amax(1).tolist()
        for index, (token, most) in enumerate(zip(self.tokens, strongest, strict=True)):
            shown += len(token)
            if shown > _MAX_CHARACTERS:
                words.append(_plain(f" … and {len(self.tokens) - index} more tokens"))
                break
            words.append(_plain(token) if most < 0 else self._chip(index, most / highest))
        style = "white-space:pre-wrap;line-height:1.7;font-family:monospace;overflow-wrap:anywhere"
        title = heading("|edit| / |hidden state|, of each token the largest of its layers")
        ends = f"0 {chip('    ', 0.0)}{chip('    ', 0.5)}{chip('    ', 1.0)} {_number(highest)}"
        legend = f'<div style="white-space:pre;margin:4px 0">{ends}</div>'
        return f'{title}<div style="{style}">{"".join(words)}</div>{legend}'

    def _chip(self, index: int, fraction: float) -> str:
        pairs = zip(self.sites, self.strength[index].tolist(), strict=True)
        there = [
            f"layer {site}: {_number(value)}" for site, value in pairs if not math.isnan(value)
        ]
        token = self.tokens[index]
        # Spaces and line ends have no colour of their own.
        text = token if token.strip() else visible(token) + "\n" * token.count("\n")
        return chip(text, fraction, f"token {index}\n" + "\n".join(there))

    def plot(self) -> Picture:
        """Draw tokens from top to bottom and edited layers from left to right.

        Runs of tokens that are not edited are one row, and a long prompt is cut.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from pyreft.pictures.figures import Cells, draw_cells, draw_scale, new_figure

        rows = self._rows()
        labels = [row if isinstance(row, str) else self._label(row) for row in rows]
        none = [math.nan] * len(self.sites)
        values = [none if isinstance(row, str) else self.strength[row].tolist() for row in rows]
        numbered = len(self.sites) <= _MAX_NUMBERED
        texts = [[_number(v) if numbered else "" for v in row] for row in values]
        wide = 0.55 if numbered else 0.3
        longest = max(map(len, labels)) * 0.085
        figure = new_figure(1.6 + longest + wide * len(self.sites), 1.2 + 0.27 * len(rows))
        axes = figure.add_subplot()
        cells = Cells(values, labels, self.sites, texts, self._highest())
        draw_cells(axes, cells)
        if max(map(len, self.sites)) > 4 or not numbered:
            axes.tick_params(axis="x", labelrotation=90)
        axes.set_xlabel("edited layer")
        draw_scale(figure, [axes], cells, "|edit| / |hidden state|")
        return figure

    def _label(self, index: int) -> str:
        return f"{visible(self.tokens[index])}  {index}"

    def _highest(self) -> float:
        """The end of the scale: the largest finite strength."""
        values = [v for v in self.strength.flatten().tolist() if math.isfinite(v)]
        return max(values, default=0.0) or 1.0

    def _rows(self) -> list[int | str]:
        """The tokens that are drawn, and texts in place of those that are not."""
        near = self.edited.any(1).nonzero().flatten().tolist()
        kept = {n for e in near for n in range(e - _BESIDE, e + _BESIDE + 1)}
        rows: list[int | str] = []
        left_out = 0
        for index in range(len(self.tokens)):
            if index in kept and len(rows) < _MAX_ROWS:
                rows += [f"… {left_out} more"] if left_out else []
                rows.append(index)
                left_out = 0
            else:
                left_out += 1
        return rows + ([f"… {left_out} more"] if left_out else [])


@torch.no_grad()
def edit_strengths(
    model: EditedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Mapping[str, object],
    *,
    adapter: str | None = None,
    row: int = 0,
) -> EditStrengths:
    """Measure how strongly each token of a prompt is edited, in one forward pass.

    The strength of an edit is the Euclidean norm of what is added to a hidden state, divided by
    the norm of that hidden state, which has the edits of the layers below in it. The model is not
    changed; it runs in evaluation mode.

    Args:
        model: A model with one stack of layers.
        tokenizer: Its tokenizer, for the texts of tokens.
        prompt: A text, which the tokenizer reads with its special tokens; or what the tokenizer
            returned for one text or several, on which side they are padded does not matter. A
            dict may have arguments of `ReftModel.forward` that are for edits.
        adapter: The name of an adapter that edits alone, with a weight of 1; by default the active
            adapters edit, and their edits are added up.
        row: The row of a prompt with several.

    Returns:
        The strengths, which show themselves in a notebook.

    Raises:
        ValueError: If the prompt has no tokens, none of them is edited, there is no such adapter
            or row, or the model has an encoder and a decoder.
        TypeError: If the prompt is neither a text nor a dict with "input_ids".
    """
    read = read_prompt(model, tokenizer, prompt, row)
    placed = place_edits(model, read, adapter)
    sites = edited_sites(placed)
    strengths = [_Strength(site) for site in sites]
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for site, strength in zip(sites, strengths, strict=True):
            component = site.component
            watch = watching(component.module, component.side, strength.before, strength.after)
            stack.enter_context(watch)
        stack.enter_context(model.edited_calls.placed(placed))
        model(**for_base(read))
    measured = torch.stack([one.values for one in strengths], dim=1)
    return EditStrengths(
        read.tokens, label_sites([(site.name, site.layer) for site in sites]), measured
    )


class _Strength:
    """The strength of the edits at one hidden state of a row, (T,) float64, NaN for none."""

    def __init__(self, site: Site) -> None:
        self._columns = site.edited.nonzero().flatten()
        self._hidden: Tensor | None = None
        self.values = torch.full((len(site.edited),), math.nan, dtype=torch.float64)

    def before(self, hidden: Tensor) -> None:
        self._hidden = self._edited(hidden)

    def after(self, hidden: Tensor) -> None:
        before = self._hidden
        assert before is not None
        norms = torch.linalg.vector_norm(before, dim=-1)
        edits = torch.linalg.vector_norm(self._edited(hidden) - before, dim=-1)
        # An edit of nothing is 0, also of a hidden state that is zero.
        self.values[self._columns] = torch.where(edits > 0, edits / norms, 0.0)
        self._hidden = None

    def _edited(self, hidden: Tensor) -> Tensor:
        return hidden[0].index_select(0, self._columns.to(hidden.device)).double().cpu()


def _plain(text: str) -> str:
    return f"<span>{escape(text)}</span>"


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if 0.01 <= value < 10 or value == 0 else f"{value:.2g}"
