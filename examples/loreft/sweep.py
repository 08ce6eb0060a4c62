"""Search layers, positions, rank and learning rate on held-out training rows, with Optuna.

    python examples/loreft/sweep.py --preset commonsense-smollm2 -data_dir llm-adapters --trials 20

All trials have one base model, and so share the frozen states that pyreft keeps of it. A trial
that is worse than most of the others at the same step ends there. At the end the best configuration
is in recommended.yaml, for `train.py --preset ... --config recommended.yaml`. heat_map.png shows
the best held-out loss, or metric of GLUE, of each choice of layers and positions. Running the same
command again resumes an interrupted sweep.
"""

import json
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

import generated
import glue
import methods
import metrics
import pyreft
import training
from arguments import Arguments, command, parse
from run_folder import run_name
from tasks import TASK_NAMES, TASKS

# Evaluations in a trial, after which it may end early.
EVALUATIONS = 4


class Sweep:
    """The trials of a sweep.

    Args:
        arguments: What all trials have in common.
        options: What is searched: layer_sets, positions, ranks, rates.
        base: The base model of all trials.
        tokenizer: Of the base model.
        data: "train" and "held_out" examples.
    """

    def __init__(
        self,
        arguments: Arguments,
        options: Namespace,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: dict[str, Dataset],
    ) -> None:
        self.arguments, self.options, self.base = arguments, options, base
        self.tokenizer, self.data = tokenizer, data
        classifies = arguments.task == "glue"
        self.metrics = glue.task_of(arguments)[1].metrics if classifies else ()
        self.metric = self.metrics[0] if classifies else "loss"
        collator = DataCollatorWithPadding if classifies else pyreft.ReftDataCollator
        self.collator = collator(tokenizer=tokenizer)
        self.sets = layer_sets(options.layer_sets.split(";"), base)
        low, high = options.rates.split(";")
        self.rates = float(low), float(high)

    @property
    def direction(self) -> str:
        """ "minimize" for a loss, else "maximize"."""
        return "minimize" if self.metric == "loss" else "maximize"

    def choose(self, trial: optuna.Trial) -> Arguments:
        """The arguments of a trial."""
        layers = self.sets[trial.suggest_categorical("layers", list(self.sets))]
        return replace(
            self.arguments,
            layers=layers if isinstance(layers, str) else ";".join(map(str, layers)),
            position=trial.suggest_categorical("position", self.options.positions.split(";")),
            rank=int(trial.suggest_categorical("rank", self.options.ranks.split(";"))),
            lr=trial.suggest_float("lr", *self.rates, log=True),
        )

    def objective(self, trial: optuna.Trial) -> float:
        """Train a trial; return its best held-out score."""
        arguments = self.choose(trial)
        set_seed(arguments.seed)
        method = methods.build(arguments, self.base)
        batch = arguments.batch_size * arguments.gradient_accumulation_steps
        steps = max(1, arguments.epochs * (len(self.data["train"]) // batch) // EVALUATIONS)
        picks = {
            "eval_dataset": self.data["held_out"],
            "compute_metrics": metrics.compute(self.metrics) if self.metrics else None,
            "metric": self.metric,
            "steps": steps,
        }
        reports = OptunaCallback(trial, self.metric)
        try:
            with tempfile.TemporaryDirectory() as folder:
                training.train(
                    method,
                    self.tokenizer,
                    self.data["train"],
                    arguments,
                    Path(folder),
                    self.collator,
                    [training.ClockCallback(), reports],
                    picks,
                )
        except FloatingPointError as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            # With it a classifier's head is as random as it was.
            method.model.unwrap()
        return (min if self.metric == "loss" else max)(reports.scores)


class OptunaCallback(TrainerCallback):
    """Report each evaluation to Optuna; stop a pruned trial."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.scores: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.scores.append(kwargs["metrics"][f"eval_{self.metric}"])
        self.trial.report(self.scores[-1], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def layer_sets(names: list[str], base: PreTrainedModel) -> dict[str, str | list[int]]:
    """Name -> layers: "all", thirds of the model, or indices as "3,9,18".

    Raises:
        ValueError: If a name is none of these.
    """
    depth = base.config.get_text_config().num_hidden_layers
    third = max(1, depth // 3)
    known: dict[str, str | list[int]] = {
        "all": "all",
        "first third": list(range(third)),
        "middle third": list(range(third, max(third + 1, depth - third))),
        "last third": list(range(depth - third, depth)),
    }
    found = {}
    for name in names:
        if name not in known:
            indices = name.split(",")
            if not all(index.strip().isdigit() for index in indices):
                raise ValueError(
                    f"layer_sets are {', '.join(known)}, or as '3,9,18'; got {name!r}."
                )
            known[name] = [int(index) for index in indices]
        found[name] = known[name]
    return found


def read_data(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
    """Examples to train on, and held out of the training rows; no row that is tested on."""
    if arguments.task == "glue":
        parts = glue.read_parts(arguments)
        parts = {"train": parts["train"], "held_out": parts["pick"]}
        return {n: glue.tokenized(rows, tokenizer, arguments) for n, rows in parts.items()}
    task = TASKS[arguments.task]
    held_out = [
        row
        for rows in generated.read_held_out(task, arguments).values()
        for row in generated.some(rows, arguments.max_n_eval_example, generated.EVALUATION_SEED)
    ]
    # Whether they are scored or not, they are held out.
    train, _ = generated.read_training(task, replace(arguments, dev_steps=1), held_out)
    rows = {"train": train, "held_out": held_out}
    return {n: training.make_examples(r, task, tokenizer, arguments) for n, r in rows.items()}


def require_searchable(arguments: Arguments) -> None:
    """Check what is searched.

    Raises:
        ValueError: If there is no such task, or it is not interventions that are trained.
    """
    if arguments.task not in TASK_NAMES:
        names = ", ".join(TASK_NAMES)
        raise ValueError(f"there is no task {arguments.task!r}; there are {names}.")
    kind = arguments.intervention_type
    if kind not in methods.interventions() or arguments.use_lora:
        raise ValueError(f"a sweep searches interventions alone, and not {kind} or use_lora.")


def draw(study: optuna.Study, options: Namespace, file: Path) -> None:
    """The best score of each choice of layers and positions, as a heat map."""
    columns, rows = options.positions.split(";"), options.layer_sets.split(";")
    best = np.full((len(rows), len(columns)), np.nan)
    choose = np.fmin if study.direction.name == "MINIMIZE" else np.fmax
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        cell = rows.index(trial.params["layers"]), columns.index(trial.params["position"])
        best[cell] = choose(best[cell], trial.value)
    figure = Figure(figsize=(1.5 + 1.1 * len(columns), 1.5 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = "viridis_r" if study.direction.name == "MINIMIZE" else "viridis"
    image = axes.imshow(best, cmap=colors, aspect="auto")
    axes.set(xlabel="positions", ylabel="layers")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    middle = np.nanmean([np.nanmin(best), np.nanmax(best)])
    for (row, column), value in np.ndenumerate(best):
        dark = value > middle if study.direction.name == "MINIMIZE" else value < middle
        label = "not tried" if np.isnan(value) else f"{value:.3f}"
        color = "white" if dark and not np.isnan(value) else "black"
        axes.text(column, row, label, ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, label=study.user_attrs["metric"])
    figure.savefig(file, dpi=120)


@command
def main() -> None:
    searched = {
        "trials": {"type": int, "default": 20, "help": "how many are to be there at the end"},
        "layer_sets": {"default": "all;first third;middle third;last third"},
        "positions": {"default": "f1;l1;f3+l3;f7+l7", "help": "separated by ;"},
        "ranks": {"default": "1;4;8;16", "help": "separated by ;"},
        "rates": {"default": "3e-4;3e-2", "help": "the lowest and the highest learning rate"},
    }
    arguments, options = parse(sys.argv[1:], __doc__.splitlines()[0], **searched)
    split = "held_out" if arguments.task == "glue" else "validation"
    arguments = replace(arguments, test_split=split, eval_dataset=None, dev_steps=0)
    require_searchable(arguments)
    space = {name: getattr(options, name) for name in searched if name != "trials"}
    folder = Path(arguments.output_dir) / f"sweep.{run_name(arguments, **space)}"
    tokenizer = methods.load_tokenizer(arguments)
    data = read_data(arguments, tokenizer)
    set_seed(arguments.seed)
    outputs = glue.task_of(arguments)[1].outputs if arguments.task == "glue" else None
    base = methods.load_base(arguments, outputs)
    sweep = Sweep(arguments, options, base, tokenizer, data)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="sweep",
        storage=f"sqlite:///{folder / 'trials.db'}",
        load_if_exists=True,
        direction=sweep.direction,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    # Other trials than those that are there.
    study.sampler = optuna.samplers.TPESampler(seed=arguments.seed + len(study.trials))
    study.set_user_attr("metric", f"held-out {sweep.metric}")
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = options.trials - len(study.get_trials(states=ended))
    study.optimize(sweep.objective, n_trials=max(0, left), show_progress_bar=True)
    best = study.best_trial
    chosen = sweep.choose(optuna.trial.FixedTrial(best.params))
    found = {name: getattr(chosen, name) for name in ("layers", "position", "rank", "lr")}
    (folder / "recommended.yaml").write_text(yaml.safe_dump(found), encoding="utf-8")
    draw(study, options, folder / "heat_map.png")
    print(json.dumps({**found, study.user_attrs["metric"]: best.value}, indent=4))
    print(f"The recommended configuration and the picture are in {folder}.")


if __name__ == "__main__":
    main()
