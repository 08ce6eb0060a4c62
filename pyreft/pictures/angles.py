"""How far the subspaces of two adapters are apart: principal angles, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.model import EditedModel
from pyreft.config.groups import place_of
from pyreft.interventions import LowRankIntervention
from pyreft.pictures.colours import chip
from pyreft.pictures.edited import label_sites
from pyreft.tables import Table, heading, html_table

if TYPE_CHECKING:
    from pyreft.pictures.figures import Picture

_MAX_NUMBERED = 16
_RIGHT = 90.0


@dataclass(frozen=True, repr=False, eq=False)
class SubspaceAngles:
    """The principal angles between the subspaces of two adapters.

    0 degrees is a direction that both have; if all angles are 90 degrees, the subspaces are
    orthogonal. In a notebook it is a table; `plot` draws angles x layers.

    Args:
        adapters: The names of both.
        sites: The label of each of the L hidden states that both edit: its layer; with the name of
            the component, if there are several.
        degrees: (L, K) float64, the angles of each in ascending order, K the largest number of
            them; a layer has as many as the smaller of its two subspaces has dimensions, the rest
            is NaN.
        overlap: (L,) float64, the mean squared cosine of the angles of each, in [0, 1]: the share
            of the smaller subspace that lies in the larger one.
    """

    adapters: tuple[str, str]
    sites: tuple[str, ...]
    degrees: Tensor
    overlap: Tensor

    def __repr__(self) -> str:
        rows = [
            [site, " ".join(map(_angle, angles)).rstrip(), f"{overlap:.3f}"]
            for site, angles, overlap in self._listed()
        ]
        return f"{self._title}\n{Table(['layer', 'degrees', 'overlap'], rows, ['overlap'])}"

    def _repr_html_(self) -> str:
        def chips(angles: Sequence[float]) -> str:
            there = (a for a in angles if not math.isnan(a))
            said = "".join(chip(_angle(a).rjust(2), 1 - a / _RIGHT, padding=4) for a in there)
            return f'<span style="white-space:pre;font-family:monospace">{said}</span>'

        rows = [[escape(s), chips(angles), f"{o:.3f}"] for s, angles, o in self._listed()]
        table = html_table(["layer", "degrees", "overlap"], rows, ["overlap"])
        return heading(self._title) + table

    def plot(self) -> Picture:
        """Draw angles from top to bottom, the smallest first, and layers from left to right.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from pyreft.pictures.figures import TEXT, Cells, draw_cells, draw_scale, new_figure

        values = self.degrees.T.tolist()
        numbered = len(self.sites) <= _MAX_NUMBERED
        texts = [[_angle(v) if numbered else "" for v in row] for row in values]
        wide = max(4.6, 1.9 + (0.5 if numbered else 0.28) * len(self.sites))
        named = max(map(len, self.sites)) > 4 or not numbered
        figure = new_figure(wide, 1.4 + 0.32 * len(values) + (0.8 if named else 0.0))
        axes = figure.add_subplot()
        labels = [str(n + 1) for n in range(len(values))]
        # Dark is near: directions that both have are what is looked for.
        cells = Cells(values, labels, self.sites, texts, _RIGHT, falling=True)
        draw_cells(axes, cells)
        if named:
            axes.tick_params(axis="x", labelrotation=90)
        axes.set_xlabel("layer", fontsize=TEXT)
        axes.set_ylabel("angle", fontsize=TEXT)
        axes.set_title(self._title, fontsize=TEXT, parse_math=False)
        draw_scale(figure, [axes], cells, "degrees")
        return figure

    def _listed(self) -> list[tuple[str, list[float], float]]:
        columns = (self.sites, self.degrees.tolist(), self.overlap.tolist())
        return list(zip(*columns, strict=True))

    @property
    def _title(self) -> str:
        return f"Principal angles between {self.adapters[0]} and {self.adapters[1]}"


@torch.no_grad()
def subspace_angles(model: EditedModel, first: str, second: str) -> SubspaceAngles:
    """Compute how far the subspaces that two adapters edit are apart, at each layer of both.

    The subspace of an adapter at a hidden state is spanned by the directions of all interventions
    that it has there: the rows of R, or of the free matrix of NodiReFT and NoReFT. It is computed
    in float64, from an orthonormal basis of each. Adapters of several models are compared after
    `load_adapter` has put them on one.

    Source: Björck and Golub 1973; for small angles from the sine, Knyazev and Argentati 2002.

    Args:
        model: The model that has both.
        first, second: Their names.

    Returns:
        The angles, which show themselves in a notebook.

    Raises:
        ValueError: If there is no such adapter, they edit no hidden state in common, or
            directions of different widths there, or an intervention has no subspace.
    """
    if not isinstance(model, EditedModel):
        raise TypeError(f"adapters of a ReftModel are compared, got {type(model).__name__}.")
    model.adapter_set.require_known([first, second])
    one, other = (model.adapter_set[name] for name in (first, second))
    ours, theirs = _directions(first, one), _directions(second, other)
    shared = [site for site in ours if site in theirs]
    if not shared:
        raise ValueError(
            f"{first} and {second} edit no hidden state in common: {first} edits "
            f"{_list_places(one)}, {second} edits {_list_places(other)}."
        )
    places = [ours[site][0] for site in shared]
    angles = []
    for site, (name, layer) in zip(shared, places, strict=True):
        rows = (ours[site][1], theirs[site][1])
        widths = [row.shape[1] for row in rows]
        if widths[0] != widths[1]:
            raise ValueError(
                f"at {name} of layer {layer}, {first} has directions of width {widths[0]} and "
                f"{second} of width {widths[1]}: one of them edits each head by itself."
            )
        angles.append(principal_angles(*rows))
    first_layers = [-1 if layer is None else layer for _, layer in places]
    order = sorted(range(len(shared)), key=first_layers.__getitem__)
    labels = label_sites([places[n] for n in order])
    degrees = torch.full((len(shared), max(1, *map(len, angles))), math.nan, dtype=torch.float64)
    for row, n in enumerate(order):
        degrees[row, : len(angles[n])] = torch.rad2deg(angles[n])
    overlap = torch.stack([angles[n].cos().square().mean() for n in order])
    return SubspaceAngles((first, second), labels, degrees, overlap)


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """The principal angles between the row spaces of two matrices, in radians, ascending.

    Args:
        first, second: (R, D) and (S, D), of any ranks.

    Returns:
        As many as the smaller space has dimensions, float64, each in [0, pi / 2].
    """
    bases = sorted((_orthonormal(rows) for rows in (first, second)), key=len)
    small, large = bases
    cosines = torch.linalg.svdvals(large @ small.T)
    # What of the smaller space lies outside of the larger one.
    sines = torch.linalg.svdvals(small - (small @ large.T) @ large).flip(0)
    return torch.atan2(sines[: len(small)], cosines[: len(small)])


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the row space, (rank, D) float64."""
    _, values, basis = torch.linalg.svd(rows.double().cpu(), full_matrices=False)
    # Parameters are float32: what is smaller than their rounding is none.
    smallest = float(values.max()) * max(rows.shape) * torch.finfo(torch.float32).eps
    kept: Tensor = basis[(values > smallest) & (values > 0)]
    return kept


def _directions(
    name: str, adapter: AttachedAdapter
) -> dict[int, tuple[tuple[str, int | None], Tensor]]:
    """For each site of an adapter: its component and layer, and its directions (R, D)."""
    found: dict[int, tuple[tuple[str, int | None], Tensor]] = {}
    modules = adapter.interventions.values()
    for target, module in zip(adapter.targets, modules, strict=True):
        rows = _basis(name, module).detach().double().cpu()
        if target.site in found:
            place, before = found[target.site]
            if before.shape[1] != rows.shape[1]:
                raise ValueError(f"{name} has directions of two widths at {target.config.place}.")
            found[target.site] = place, torch.cat([before, rows])
        else:
            found[target.site] = place_of(target.config), rows
    return found


def _basis(name: str, module: nn.Module) -> Tensor:
    if not isinstance(module, LowRankIntervention):
        raise ValueError(
            f"the adapter {name!r} has a {type(module).__name__}, which has no subspace: angles "
            "are between low-rank interventions."
        )
    return module.basis()


def _list_places(adapter: AttachedAdapter) -> str:
    return ", ".join(dict.fromkeys(target.config.place for target in adapter.targets))


def _angle(degrees: float) -> str:
    return "" if math.isnan(degrees) else f"{degrees:.0f}"
