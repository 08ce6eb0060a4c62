"""The losses of a run as an image for the model card, if matplotlib is installed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

# Blue, orange, green, red-purple: colours that colour-blind people can tell apart on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw_losses(log: Sequence[Mapping[str, float]]) -> bytes | None:
    """Draw training and evaluation losses over steps.

    Args:
        log: Entries with `step` and any of `loss` and `eval_..._loss`, in order, as the
            transformers Trainer keeps them in `state.log_history`.

    Returns:
        A PNG, or None if there are fewer than two training losses, or no matplotlib.
    """
    names = dict.fromkeys(name for entry in log for name in entry if _is_loss(name))
    curves = {name: _points(log, name) for name in sorted(names, key=lambda name: name != "loss")}
    curves = {name: points for name, points in curves.items() if points}
    if len(curves.get("loss", ())) < 2 or find_spec("matplotlib") is None:
        return None
    # Not pyplot, which would select a backend and keep every figure for the whole process.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, points) in zip(_COLOURS, curves.items(), strict=False):
        marker = "o" if len(points) < 30 else ""
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=_label(name))
    axes.set_xlabel("step", fontsize=12)
    axes.set_ylabel("loss", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(fontsize=11, frameon=False)
    image = io.BytesIO()
    # Without the version of matplotlib, so that the same run has the same bytes.
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _is_loss(name: str) -> bool:
    return name == "loss" or (name.startswith("eval_") and name.endswith("_loss"))


def _points(log: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    there = [(entry["step"], entry[name]) for entry in log if name in entry and "step" in entry]
    return [(step, value) for step, value in there if math.isfinite(value)]


def _label(name: str) -> str:
    """The label of a curve. Dollar signs in names of data sets would be parsed as formulas."""
    words = {"loss": "training", "eval_loss": "evaluation"}
    named = name.removeprefix("eval_").removesuffix("_loss").replace("$", r"\$")
    return words.get(name, f"evaluation, {named}")
