"""Logit lens: what each edited layer would say next, before and after its edit.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens": the final norm and the output head
of the model are applied to the hidden state of an earlier layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pyreft.adapters.model import EditedModel
from pyreft.base_model.running import evaluating
from pyreft.pictures.colours import chip
from pyreft.pictures.edited import place_edits
from pyreft.pictures.lens_passes import LensPasses
from pyreft.pictures.prompt import read_prompt
from pyreft.pictures.tokens import token_text, visible
from pyreft.tables import Table, heading, html_table

if TYPE_CHECKING:
    from pyreft.pictures.figures import Picture

OUTPUT = "output"
# Characters in a cell of a figure.
_LONGEST = 11


class Guess(NamedTuple):
    """A token that may come next.

    Args:
        token: Its text.
        id: Its id.
        probability: In [0, 1].
    """

    token: str
    id: int
    probability: float


@dataclass(frozen=True)
class LensRow:
    """What one layer would say next.

    Args:
        layer: The index of the layer, or "output" for the model itself.
        before: The most probable tokens, with the edits of the layers below and without those of
            this layer; at the output, those of the bare base model.
        after: The most probable tokens with both; at the output, those of the edited model.
        change: Half the sum of all absolute differences of the probabilities, in [0, 1]: the share
            of the probability that the edits have moved.
    """

    layer: str
    before: tuple[Guess, ...]
    after: tuple[Guess, ...]
    change: float


@dataclass(frozen=True, repr=False)
class LogitLens:
    """What each edited layer would say after a token of the prompt.

    In a notebook it is a table; `plot` draws it.

    Args:
        token: The text of the token.
        position: Its index in the prompt, padding not counted.
        rows: The edited layers, from the first to the last, and the output of the model.
    """

    token: str
    position: int
    rows: tuple[LensRow, ...]

    def __repr__(self) -> str:
        def listed(guesses: Sequence[Guess]) -> str:
            return ", ".join(f"{visible(g.token)} {_percent(g.probability)}" for g in guesses)

        rows = [[r.layer, listed(r.before), listed(r.after), _percent(r.change)] for r in self.rows]
        return f"{self._title}\n{Table(['layer', 'before', 'after', 'change'], rows, ['change'])}"

    def _repr_html_(self) -> str:
        def chips(guesses: Sequence[Guess]) -> str:
            said = (
                chip(
                    f"{visible(g.token)} {_percent(g.probability)}", g.probability, f"id {g.id}", 4
                )
                for g in guesses
            )
            return " ".join(said)

        rows = [[r.layer, chips(r.before), chips(r.after), _percent(r.change)] for r in self.rows]
        table = html_table(["layer", "before", "after", "change"], rows, ["change"])
        return heading(self._title) + table

    def plot(self) -> Picture:
        """Draw the tokens of each layer, before and after its edits, on their probabilities.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from pyreft.pictures.figures import (
            TEXT,
            Cells,
            draw_cells,
            draw_scale,
            drawable,
            new_figure,
        )

        count = len(self.rows[0].before)
        figure = new_figure(1.6 + 2 * 1.05 * count, 1.1 + 0.4 * len(self.rows))
        panels = figure.subplots(1, 2, sharey=True)
        labels, columns = [row.layer for row in self.rows], [str(n + 1) for n in range(count)]
        titles = ("before the edit of the layer", "after it")
        for axes, title, side in zip(panels, titles, ("before", "after"), strict=True):
            guesses: list[tuple[Guess, ...]] = [getattr(row, side) for row in self.rows]
            values = [[guess.probability for guess in row] for row in guesses]
            texts = [[_two_lines(drawable(visible(g.token)), g) for g in row] for row in guesses]
            cells = Cells(values, labels, columns, texts, 1.0)
            draw_cells(axes, cells)
            axes.set_title(title, fontsize=TEXT)
        panels[0].set_ylabel("layer", fontsize=TEXT)
        figure.suptitle(self._title, fontsize=TEXT + 1, parse_math=False)
        draw_scale(figure, panels, cells, "probability")
        return figure

    @property
    def _title(self) -> str:
        return f"What comes after “{visible(self.token)}”, token {self.position} of the prompt"


@torch.no_grad()
def logit_lens(
    model: EditedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Mapping[str, object],
    *,
    position: int = -1,
    top: int = 5,
    adapter: str | None = None,
    row: int = 0,
) -> LogitLens:
    """Read each edited layer as if it were the last one, before and after its edits.

    The hidden state that leaves the layer goes through what follows the last layer: the final norm
    and the output head, with all that the architecture does there, such as a cap on logits.
    "Before" is that hidden state without the edits of this layer, "after" is it with them. Both
    have the edits of the layers below. The last row is the model itself, bare and edited: edits
    outside of layers are in that row alone. A head or a LoRA that is trained with the active
    adapter is in both. The model is not changed; it runs in evaluation mode.

    Args:
        model: A model that predicts tokens, with one stack of layers.
        tokenizer: Its tokenizer.
        prompt: As for `edit_strengths`.
        position: The token after which is read: its index in the prompt, padding not counted;
            negative ones count from the end. -1 is the last.
        top: How many tokens are listed, the most probable ones.
        adapter: As for `edit_strengths`.
        row: The row of a prompt with several.

    Returns:
        The lens, which shows itself in a notebook.

    Raises:
        ValueError: If the model does not predict tokens, or the position is outside the prompt, or
            `top` is not between 1 and the size of the vocabulary; or as for `edit_strengths`.
        TypeError: As for `edit_strengths`.
    """
    read = read_prompt(model, tokenizer, prompt, row)
    index = read.index(position)
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top is the number of tokens that are listed, at least 1; got {top!r}.")
    with evaluating(model):
        passes = LensPasses(model, place_edits(model, read, adapter), read, index)
        layers, before, after = passes.run()
    if top > before.shape[1]:
        raise ValueError(
            f"top is at most {before.shape[1]}, the size of the vocabulary; got {top}."
        )
    rows = [
        LensRow(
            str(layer),
            _most_probable(tokenizer, one, top),
            _most_probable(tokenizer, other, top),
            float((one - other).abs().sum() / 2),
        )
        for layer, one, other in zip([*layers, OUTPUT], before, after, strict=True)
    ]
    return LogitLens(read.tokens[index], index, tuple(rows))


def _most_probable(
    tokenizer: PreTrainedTokenizerBase, probabilities: Tensor, top: int
) -> tuple[Guess, ...]:
    values, ids = probabilities.topk(top)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple(Guess(token_text(tokenizer, token), token, value) for token, value in pairs)


def _two_lines(text: str, guess: Guess) -> str:
    """What is in a cell of a figure: the token, cut to the width of the cell, and its percent."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return f"{cut}\n{_percent(guess.probability)}"


def _percent(probability: float) -> str:
    percent = 100 * probability
    return "0 %" if percent == 0 else "<0.1 %" if percent < 0.1 else f"{percent:.1f} %"
