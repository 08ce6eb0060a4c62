"""`model.summary()`: the base model, its adapters, and how large each of their parts is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pyreft.adapters.attached import AttachedAdapter
from pyreft.config.groups import Group, group_alike, name_positions
from pyreft.tables import Table, heading, preformatted, printable

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel

_HEAD = ["adapter", "active", "kind", "component", "layers", "positions", "rank", "parameters"]
_SHARE = "of the base model"


@dataclass(frozen=True)
class SummaryRow:
    """Interventions of one adapter that differ in their layer alone, or a part of the base model.

    Args:
        adapter: The name of the adapter.
        weight: The factor of its edits; None if it is not active.
        kind: The kind of intervention, or "trained part" for a part of the base model.
        component: The edited component, or the name of the trained part.
        layers: The layers, "0-3, 7".
        positions: The position spec, "f2+l1".
        rank: R, None if the kind has none.
        parameters: The number of parameters; shared weights are counted where they come first.
    """

    adapter: str
    weight: float | None
    kind: str
    component: str
    layers: str
    positions: str
    rank: int | None
    parameters: int


@dataclass(frozen=True, repr=False)
class SummaryReport:
    """A base model and its adapters: a table in a terminal, and in a notebook.

    Args:
        base_model: The class and the name of the base model.
        base_parameters: The number of its parameters, trained parts included.
        rows: What each adapter has.
    """

    base_model: str
    base_parameters: int
    rows: tuple[SummaryRow, ...]

    def parameters(self, adapter: str) -> int:
        """The number of parameters of an adapter, and of the parts of the base model it trains.

        Raises:
            ValueError: If there is no such adapter.
        """
        names = list(dict.fromkeys(row.adapter for row in self.rows))
        if adapter not in names:
            raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(names)}.")
        return sum(row.parameters for row in self.rows if row.adapter == adapter)

    def __repr__(self) -> str:
        return f"{self._title}\n\n{self._table}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return heading(self._title) + self._table._repr_html_()

    @property
    def _title(self) -> str:
        return f"{self.base_model}, {self.base_parameters:,} parameters"

    @property
    def _table(self) -> Table:
        rows, before = [], ""
        for row in self.rows:
            weight = "no" if row.weight is None else "yes"
            weight += "" if row.weight in (None, 1.0) else f", weight {row.weight:g}"
            first = [row.adapter, weight] if row.adapter != before else ["", ""]
            before = row.adapter
            share = row.parameters / max(self.base_parameters, 1)
            rank = "" if row.rank is None else str(row.rank)
            what = [row.kind, row.component, row.layers, row.positions, rank]
            rows.append([*first, *what, f"{row.parameters:,}", f"{100 * share:.4f} %"])
        return Table([*_HEAD, _SHARE], rows, ["rank", "parameters", _SHARE])


def summarize(model: EditedModel) -> SummaryReport:
    """Describe the base model and all adapters, active or not.

    Printed, and as the last value of a cell of a notebook, it is a table: for each adapter its
    kinds, components, layers, positions and ranks, its parameters, and their share of those of the
    base model.
    """
    base = model.model
    name = str(getattr(base.config, "name_or_path", "") or "")
    # Only the last part of a path, because the rest is private.
    name = Path(name).name if Path(name).is_absolute() else name
    rows = [
        row
        for adapter_name, adapter in model.adapter_set.items()
        for row in _rows(adapter_name, model.adapter_set.active.get(adapter_name), adapter)
    ]
    called = type(base).__name__ + (f", {printable(name)}" if name else "")
    return SummaryReport(called, _count(base.parameters()), tuple(rows))


def model_html(model: EditedModel) -> str:
    """A model as HTML: its summary, and what each adapter edits."""
    shown = summarize(model)._repr_html_()
    for name, adapter in model.adapter_set.items():
        title = heading(name) if len(model.adapter_set) > 1 else ""
        shown += title + preformatted(adapter.picture())
    return shown


def _rows(name: str, weight: float | None, adapter: AttachedAdapter) -> Iterable[SummaryRow]:
    modules = list(adapter.interventions.values())
    counted: set[nn.Module] = set()
    for group in group_alike(adapter.config.representations):
        own = {modules[index] for index in group.members} - counted
        counted |= own
        parameters = _count(p for module in own for p in module.parameters())
        yield _row(name, weight, group, parameters)
    if (trained := adapter.trained).names:
        parts, count = ", ".join(trained.names), _count(trained.tensors().values())
        yield SummaryRow(name, weight, "trained part", parts, "", "", None, count)


def _row(name: str, weight: float | None, group: Group, parameters: int) -> SummaryRow:
    first = group.first
    at, rank = name_positions(first.positions), first.low_rank_dimension
    kind = printable(first.kind)
    return SummaryRow(name, weight, kind, group.component, group.named_layers, at, rank, parameters)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
