"""What is learned in a number of steps and seconds: losses of LoReFT and LoRA, by method and rate.

    python examples/benchmarks/learning.py --data data      # data/glue/MRPC, data/llm-adapters/...
    python examples/benchmarks/learning.py --settings demonstrations --methods paper householder \
        --seeds 0 1 2 --rates 4e-3

Settings are those of learning_tasks.py. Methods, of one start and one order of the data:

    paper         LoReFT, one learning rate
    recommended   what `pyreft.recommended` returns, its layers and positions included
    householder   the same as paper, R under torch's `orthogonal`, as upstream
    lora          PEFT's LoRA, r 8, on q and v of all layers
    lora_plus     the same, with PEFT's LoRA+ optimizer: B has 16 times the rate of A

AdamW without weight decay; the rate falls linearly to 0; all train a classifier's head. The table
has losses, without dropout, after a third of the steps and at the end, of rows that are trained on
and of others. Runs are appended to a file as they end, and those that are in there are not run
again. Seconds are those of training, without evaluation; compare them within one sitting on one
machine only. Tables and pictures are of the best of all rates in the file, by the mean score of
--seeds at the end.
"""

import json
import math
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import set_seed

import harness
import learning_tasks as tasks
import pyreft
from learning_tasks import RATES, SETTINGS, STYLES, Setting

# A training loss is the mean over so many steps, of an epoch at most: batches differ.
WINDOW = 8
# Scores so near to the best one are as good.
NEAR = 0.05


# ---- one run ---------------------------------------------------------------------------------


def run(setting: Setting, identity: dict[str, Any], arguments: Namespace) -> dict[str, Any]:
    """Train once; what is recorded of it."""
    method, seed, rate = (identity[name] for name in ("method", "seed", "rate"))
    # The base model's head first: it is the same for all methods.
    set_seed(seed)
    model = tasks.build(setting, method)
    scores = tasks.Scores(setting, identity["steps"])
    trainer = (tasks.PlainTrainer if method.startswith("lora") else tasks.ReftTrainer)(
        model=model,
        **tasks.optimizer_arguments(model, method, rate),
        args=tasks.training_arguments(
            arguments,
            seed,
            max_steps=identity["steps"],
            per_device_train_batch_size=setting.batch,
            learning_rate=rate,
        ),
        train_dataset=setting.train,
        data_collator=pyreft.ReftDataCollator(tokenizer=setting.tokenizer),
        callbacks=[scores],
    )
    set_seed(seed)
    try:
        trainer.train()
    except FloatingPointError:
        # The loss is no longer finite: of the rest of the run there is none.
        nothing = dict.fromkeys(("seconds", "loss", "trained"), math.nan)
        scores.points += [{"step": s, **nothing} for s in scores.steps[len(scores.points) :]]
    losses = [float(loss) for loss in trainer.losses]
    losses += [math.nan] * (identity["steps"] - len(losses))
    recorded = {"losses": losses, "points": scores.points, "threads": arguments.threads}
    return {**identity, **recorded, "orthonormality_error": tasks.orthonormality_error(model)}


# ---- many runs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The runs of one setting, method and rate: arrays have a row for each seed.

    Args:
        rate: Learning rate.
        losses: Training losses after smoothing, (seeds, steps).
        at: Steps of evaluation, (points,).
        seconds: Of training until then, (seeds, points).
        trained: The loss of rows that are trained on, without dropout, (seeds, points).
        scores: The held-out loss below zero, (seeds, points). Higher is better.
    """

    rate: float
    losses: np.ndarray
    at: np.ndarray
    seconds: np.ndarray
    trained: np.ndarray
    scores: np.ndarray

    @property
    def final(self) -> float:
        """The mean score at the end."""
        return float(self.scores[:, -1].mean())


def read_curves(runs: list[dict], window: int) -> Curves:
    """The curves of runs that differ in nothing but their seeds."""
    losses, points = [r["losses"] for r in runs], [r["points"] for r in runs]
    ends = range(1, len(losses[0]) + 1)
    return Curves(
        rate=runs[0]["rate"],
        losses=np.array([[np.mean(row[max(0, i - window) : i]) for i in ends] for row in losses]),
        at=np.array([point["step"] for point in points[0]]),
        seconds=np.array([[point["seconds"] for point in row] for row in points]),
        trained=np.array([[point["trained"] for point in row] for row in points]),
        scores=np.array([[_score(point) for point in row] for row in points]),
    )


def _score(point: dict) -> float:
    return -point["loss"] if math.isfinite(point["loss"]) else -math.inf


def identify(setting: Setting, method: str, seed: int, rate: float, arguments: Namespace) -> dict:
    """What tells a run from others."""
    return {
        "setting": setting.name,
        "method": method,
        "seed": seed,
        "rate": rate,
        "steps": arguments.steps or setting.steps,
    }


def find(runs: list[dict], identity: dict[str, Any]) -> dict | None:
    """The recorded run of an identity."""
    return next((r for r in runs if all(r[n] == v for n, v in identity.items())), None)


def by_method(runs: list[dict], setting: Setting, arguments: Namespace) -> dict[str, list[Curves]]:
    """Method -> its curves, one for each rate that all seeds were run at."""
    window = min(WINDOW, len(setting.train) // setting.batch)
    found: dict[str, list[Curves]] = {}
    for method in RATES:
        for rate in sorted({r["rate"] for r in runs}):
            wanted = [identify(setting, method, seed, rate, arguments) for seed in arguments.seeds]
            same = [r for r in (find(runs, identity) for identity in wanted) if r]
            if len(same) == len(wanted):
                found.setdefault(method, []).append(read_curves(same, window))
    return found


def best(curves: list[Curves]) -> Curves:
    """Those of the best rate."""
    return max(curves, key=lambda one: one.final)


# ---- table and picture -----------------------------------------------------------------------


def row(method: str, found: dict[str, list[Curves]]) -> dict[str, str]:
    """What the table says of a method in a setting."""
    curves, own = found[method], best(found[method])
    rates = [one.rate for one in curves]
    near = [c.rate for c in curves if abs(c.final - own.final) <= NEAR * abs(own.final)]
    edge = len(rates) > 1 and own.rate in (min(rates), max(rates))
    seconds = "-"
    third = list(own.at).index(own.losses.shape[1] // 3)
    if "lora" in found:
        target = best(found["lora"]).scores.mean(0).max()
        seconds = _first(own.scores.mean(0) >= target, own.seconds.mean(0), ".0f")
    return {
        "rate": f"{own.rate:g}" + " (edge)" * edge,
        "trained, a third": _spread(own.trained[:, third]),
        "trained, end": _spread(own.trained[:, -1]),
        "held out, a third": _spread(-own.scores[:, third]),
        "held out, end": _spread(-own.scores[:, -1]),
        "seconds to LoRA's best": seconds,
        "good rates": f"{max(near) / min(near):.3g}x" if near else "-",
    }


def _spread(values: np.ndarray) -> str:
    """The mean, the lowest and the highest."""
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def _first(reached: np.ndarray, values: Any, form: str) -> str:
    """The first value of those that are reached."""
    return format(values[int(np.argmax(reached))], form) if reached.any() else "not reached"


def draw(settings: dict[str, dict[str, list[Curves]]], path: Path) -> None:
    """Scores and training losses against steps, a band from the lowest to the highest seed."""
    figure = Figure(figsize=(4.5 * len(settings), 6.5), layout="constrained")
    axes = figure.subplots(2, len(settings), squeeze=False)
    for column, (name, found) in enumerate(settings.items()):
        for index, method in enumerate(RATES):
            if method not in found:
                continue
            own = best(found[method])
            steps = np.arange(1, own.losses.shape[1] + 1)
            label, color = f"{method}, {own.rate:g}", f"C{index}"
            for axis, x, y in ((0, own.at, np.abs(own.scores)), (1, steps, own.losses)):
                axes[axis, column].plot(x, y.mean(0), color=color, label=label)
                axes[axis, column].fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15)
        axes[0, column].set(title=name, ylabel="held-out loss", yscale="log")
        axes[1, column].set(xlabel="step", ylabel="training loss", yscale="log")
        axes[0, column].legend(fontsize=8)
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def parse() -> Namespace:
    arguments = harness.parse(
        __doc__,
        [],
        ("--data", {"type": Path, "help": "folder of glue/MRPC and llm-adapters/openbookqa"}),
        ("--settings", {"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS)}),
        ("--methods", {"nargs": "+", "default": list(RATES), "choices": list(RATES)}),
        ("--style", {"default": STYLES[0], "choices": STYLES, "help": "of demonstrations"}),
        ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]}),
        ("--rates", {"type": float, "nargs": "+", "help": "four for each method by default"}),
        ("--ranks", {"type": int, "nargs": "+", "help": "of paper and householder"}),
        ("--steps", {"type": int, "help": "of a run; those of the setting by default"}),
        ("--results", {"type": Path, "help": "default: learning.jsonl in --out"}),
        ("--picture", {"type": Path, "help": "draw the curves into this file"}),
    )
    if arguments.data is None and arguments.settings != ["demonstrations"]:
        raise SystemExit("classification and commonsense need --data.")
    # What the table says it was measured with: here a round is a seed.
    arguments.rounds = len(arguments.seeds)
    return arguments


def main() -> None:
    arguments = parse()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # Not a report of what is random with every model that is loaded.
    transformers.utils.logging.set_verbosity_error()
    settings = [SETTINGS[name](arguments) for name in arguments.settings]
    if arguments.ranks:
        settings = [
            replace(setting, name=f"{setting.name}, rank {rank}", rank=rank)
            for setting in settings
            for rank in arguments.ranks
        ]
    file = arguments.results or arguments.out / "learning.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    runs = [json.loads(line) for line in lines]
    wanted = [
        (setting, identify(setting, method, seed, rate, arguments))
        for setting in settings
        for seed in arguments.seeds
        for method in arguments.methods
        for rate in arguments.rates or RATES[method]
    ]
    for setting, identity in tqdm([w for w in wanted if not find(runs, w[1])], unit="run"):
        runs.append(run(setting, identity, arguments))
        with open(file, "a", encoding="utf-8") as results:
            results.write(json.dumps(runs[-1]) + "\n")

    found = {setting.name: by_method(runs, setting, arguments) for setting in settings}
    rows = [
        {"setting": s.name, "method": method, **row(method, found[s.name])}
        for s in settings
        for method in arguments.methods
        if method in found[s.name]
    ]
    text = harness.table(list(rows[0]), [list(cells.values()) for cells in rows])
    harness.publish("learning", arguments, rows, text)
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
