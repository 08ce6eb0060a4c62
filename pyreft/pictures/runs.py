"""Losses and scores of several runs, as curves beside each other."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pyreft.sharing.loss_curve import COLOURS, draw_axes, is_loss, points_of
from pyreft.sharing.training_facts import is_metric

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from transformers import Trainer

    from pyreft.pictures.figures import Picture

# What a run is given as: a trainer, its log, or where it was saved.
Run: TypeAlias = "Trainer | Sequence[Mapping[str, object]] | str | os.PathLike[str]"
Log: TypeAlias = list[dict[str, float]]
STATE_NAME = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_X_NAMES = ("step", "epoch", "seconds")
_MARKERS = ("o", "s", "^", "D", "v")
# A curve of fewer points shows each of them.
_FEW = 30
_PANELS_IN_A_ROW = 3
_EVAL = "eval_"


def plot_runs(
    runs: Mapping[str, Run], *, x: str = "step", metrics: Sequence[str] | None = None
) -> Picture:
    """Draw the losses and scores of several runs: a colour for each run, a panel for each score.

    Args:
        runs: For each run its name in the legend, and one of: a trainer; the `log_history` of its
            state; a directory of a run or of a checkpoint, in which "trainer_state.json" is read,
            that of the newest checkpoint of a run; or such a file.
        x: "step", "epoch" or "seconds". Seconds of training are known if the Trainer logged them:
            with `TrainingArguments(include_num_input_tokens_seen="all")` it does in each entry. A
            resumed run continues where it stopped.
        metrics: The names of what is drawn, as they are in the log, such as "loss" and
            "eval_accuracy". By default losses, and all scores of evaluations.

    Returns:
        The figure; losses of training and of evaluations are in one panel.

    Raises:
        ValueError: If there is no run, a run has no log or none of the metrics, or `x` is unknown
            for it.
        TypeError: If a run is none of these.
        ImportError: If matplotlib is not installed.
    """
    from pyreft.pictures.figures import MaxNLocator, new_figure

    if not isinstance(runs, Mapping):
        raise TypeError(
            f"plot_runs takes a dict, from a name to each run; got {type(runs).__name__}."
        )
    if x not in _X_NAMES:
        raise ValueError(f"x is one of {', '.join(_X_NAMES)}; got {x!r}.")
    if not runs:
        raise ValueError("there is no run to draw.")
    logs = {str(name): read_log(name, run) for name, run in runs.items()}
    panels = _panels(logs, metrics)
    chosen = [name for names in panels.values() for name in names]
    logs = {name: _with_x(name, log, x, chosen) for name, log in logs.items()}
    columns = min(len(panels), _PANELS_IN_A_ROW)
    lines = -(-len(panels) // columns)
    width = 0.6 + 4.8 * columns
    legend = _legend(list(logs), panels)
    # In inches: the lines and markers of the legend, and its characters.
    longest = 0.7 + 0.1 * max(len(str(entry.get_label())) for entry in legend)
    beside = max(1, min(int(width / longest), len(legend)))
    figure = new_figure(width, 0.3 + 3.3 * lines + 0.25 * -(-len(legend) // beside))
    for number, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        for index, log in enumerate(logs.values()):
            _draw_run(axes, log, names, x, index)
        draw_axes(axes, x, _plain(title))
        if x == "step":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        handles=legend, loc="outside upper left", ncols=beside, fontsize=11, frameon=False
    )
    return figure


def read_log(name: str, run: Run) -> Log:
    """The numbers that a run logged, entry by entry.

    Args:
        name: Its name, for messages.
        run: See `plot_runs`.

    Raises:
        ValueError: If there is no log.
        TypeError: If the run is none of what is possible.
    """
    history: object = run
    if isinstance(run, (str, os.PathLike)):
        history = _read_state(name, Path(run))
    elif (state := getattr(run, "state", None)) is not None:
        history = getattr(state, "log_history", None)
    if not isinstance(history, Sequence) or not all(isinstance(e, Mapping) for e in history):
        raise TypeError(
            f"the run {name!r} is a trainer, the log_history of its state, or a directory with "
            f"{STATE_NAME}; got {type(run).__name__}."
        )
    log = [{str(key): v for key, v in e.items() if _is_number(v)} for e in history]
    if not any(log):
        raise ValueError(f"the run {name!r} has logged nothing yet.")
    return log


def _read_state(name: str, path: Path) -> object:
    """The log in the state of a trainer, of its newest checkpoint in the directory of a run."""
    found = path if path.is_file() else path / STATE_NAME
    if path.is_dir() and not found.is_file():
        folders = ((_CHECKPOINT.fullmatch(p.name), p / STATE_NAME) for p in path.iterdir())
        states = [(int(match[1]), file) for match, file in folders if match and file.is_file()]
        found = max(states, default=(0, found))[1]
    if not found.is_file():
        raise ValueError(
            f"the run {name!r} has no {STATE_NAME}, in {path} or in a checkpoint-... there. A "
            "Trainer writes it with each checkpoint, and with trainer.save_state()."
        )
    try:
        state = json.loads(found.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {found} of the run {name!r}: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{found} of the run {name!r} is no state of a trainer.")
    return state["log_history"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _panels(logs: Mapping[str, Log], metrics: Sequence[str] | None) -> dict[str, list[str]]:
    """For the title of each panel, the names that are drawn in it."""
    there = dict.fromkeys(key for log in logs.values() for entry in log for key in entry)
    if metrics is None:
        scores = [n for n in there if n.startswith(_EVAL) and is_metric(n) and not is_loss(n)]
        chosen = [*(n for n in there if is_loss(n)), *scores]
    else:
        chosen = [metrics] if isinstance(metrics, str) else list(metrics)
    missing = [name for name in chosen if name not in there]
    if missing or not chosen:
        what = f"no run has logged {missing[0]!r}" if missing else "no run has a loss or a score"
        raise ValueError(f"{what}; there are {', '.join(there)}.")
    panels: dict[str, list[str]] = {}
    for name in chosen:
        panels.setdefault("loss" if is_loss(name) else name.removeprefix(_EVAL), []).append(name)
    for name, log in logs.items():
        if not any(one in entry for entry in log for one in chosen):
            raise ValueError(f"the run {name!r} has logged none of {', '.join(chosen)}.")
    return panels


def _with_x(name: str, log: Log, x: str, chosen: Sequence[str]) -> Log:
    """The log, in which entries have the value of x as far as it is known.

    Raises:
        ValueError: If no entry with a chosen metric has one.
    """
    if x == "seconds":
        log = _with_seconds(log)
    if not any(points_of(log, metric, x) for metric in chosen):
        ending = f" beside {', '.join(chosen)}"
        if x == "seconds":
            ending += "; TrainingArguments(include_num_input_tokens_seen='all') logs seconds"
        raise ValueError(f"the run {name!r} has logged no {x}{ending}.")
    return log


def _with_seconds(log: Log) -> Log:
    """The log with seconds of training, as far as they were logged.

    `train_runtime` begins anew when a run is resumed. An evaluation has the seconds of the entry
    before it of the same step.
    """
    timed, earlier, last, step = [], 0.0, 0.0, None
    several = sum("train_runtime" in entry for entry in log) > 1
    for entry in log:
        runtime = entry.get("train_runtime") if several else None
        if runtime is not None:
            earlier += last if runtime < last else 0.0
            last, step = runtime, entry.get("step")
        known = runtime is not None or (step is not None and entry.get("step") == step)
        timed.append({**entry, "seconds": earlier + last} if known else entry)
    return timed


def _draw_run(axes: Axes, log: Log, names: Sequence[str], x: str, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    marker = _MARKERS[index // len(COLOURS) % len(_MARKERS)]
    for name in names:
        points = points_of(log, name, x)
        if points:
            # Of training, which has no end of its own, only few points are marked.
            marked = marker if len(points) < _FEW or index >= len(COLOURS) else ""
            style = "--" if name.startswith(_EVAL) and is_loss(name) else "-"
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=style,
                marker=marked,
                markersize=4,
            )


def _legend(names: Sequence[str], panels: Mapping[str, Sequence[str]]) -> list[Artist]:
    from matplotlib.lines import Line2D

    runs: list[Artist] = [
        Line2D(
            *([], []),
            color=COLOURS[index % len(COLOURS)],
            marker=_MARKERS[index // len(COLOURS) % len(_MARKERS)],
            markersize=5,
            linewidth=2,
            label=_plain(name),
        )
        for index, name in enumerate(names)
    ]
    drawn = panels.get("loss", ())
    if not any(name.startswith(_EVAL) for name in drawn) or "loss" not in drawn:
        return runs
    return [
        *runs,
        Line2D([], [], color="#777777", linestyle="-", label="training"),
        Line2D([], [], color="#777777", linestyle="--", label="evaluation"),
    ]


def _plain(text: str) -> str:
    """A text that matplotlib does not parse as a formula, or leave out of a legend."""
    return text.lstrip("_").replace("$", r"\$") or "run"
