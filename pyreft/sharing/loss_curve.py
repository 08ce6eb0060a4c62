"""The losses of a run as an image for the model card, if matplotlib is installed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue, orange, green, red-purple, amber, light blue, black: colours that colour-blind people can
# tell apart on white (Okabe and Ito 2008, without yellow).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw_losses(log: Sequence[Mapping[str, float]]) -> bytes | None:
    """Draw training and evaluation losses over steps.

    Args:
        log: Entries with `step` and any of `loss` and `eval_..._loss`, in order, as the
            transformers Trainer keeps them in `state.log_history`.

    Returns:
        A PNG, or None if there are fewer than two training losses, or no matplotlib.
    """
    names = dict.fromkeys(name for entry in log for name in entry if is_loss(name))
    curves = {name: points_of(log, name) for name in sorted(names, key=lambda name: name != "loss")}
    curves = {name: points for name, points in curves.items() if points}
    if len(curves.get("loss", ())) < 2 or find_spec("matplotlib") is None:
        return None
    # Not pyplot, which would select a backend and keep every figure for the whole process.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        marker = "o" if len(points) < 30 else ""
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=_label(name))
    draw_axes(axes, "step", "loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend(fontsize=11, frameon=False)
    image = io.BytesIO()
    # Without the version of matplotlib, so that the same run has the same bytes.
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def draw_axes(axes: Axes, x: str, y: str) -> None:
    """Name the axes of curves, and draw a light grid."""
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def is_loss(name: str) -> bool:
    """Whether an entry of a log is a loss, of training or of an evaluation."""
    return name == "loss" or (name.startswith("eval_") and name.endswith("_loss"))


def points_of(
    log: Sequence[Mapping[str, float]], name: str, x: str = "step"
) -> list[tuple[float, float]]:
    """The finite values of a name in a log, each with its value of x."""
    there = [(entry[x], entry[name]) for entry in log if name in entry and x in entry]
    return [(at, value) for at, value in there if math.isfinite(value)]


def _label(name: str) -> str:
    """The label of a curve. Dollar signs in names of data sets would be parsed as formulas."""
    words = {"loss": "training", "eval_loss": "evaluation"}
    named = name.removeprefix("eval_").removesuffix("_loss").replace("$", r"\$")
    return words.get(name, f"evaluation, {named}")
