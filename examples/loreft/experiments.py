"""The experiments of docs/results.md: search the rate, train, evaluate, print the table.

    python examples/loreft/experiments.py mrpc --data_dir glue
    python examples/loreft/experiments.py commonsense --data_dir llm-adapters --methods LoRA

What is run is in experiments.yaml. Every run is appended to a file when it ends, and what is in
there is not run again; a run that was interrupted goes on from its last checkpoint.
"""

import statistics
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

import train
from arguments import Arguments, command, parse
from evaluation import append_lines, read_lines
from run_folder import run_name

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))
import harness  # noqa: E402  # lies in another folder of the examples

EXPERIMENTS = HERE / "experiments.yaml"
RESULTS = HERE / "results.jsonl"


class Runs:
    """The runs of an experiment: those that are recorded, and those that are started here.

    Args:
        name: Of the experiment.
        options: Of the command line.
    """

    def __init__(self, name: str, options: Namespace) -> None:
        self.name, self.options = name, options
        self.experiment = yaml.safe_load(EXPERIMENTS.read_text(encoding="utf-8"))[name]
        self.recorded = read_lines(options.results)

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Name -> what differs from the preset, and rates."""
        return self.experiment["methods"]

    def arguments(self, method: str, **changes: Any) -> Arguments:
        """The arguments of a run."""
        preset, _ = parse(["--preset", self.experiment["preset"]], __doc__)
        own = {k: v for k, v in self.methods[method].items() if k != "rates"}
        folders = {"data_dir": self.options.data_dir, "output_dir": self.options.output_dir}
        return replace(preset, **folders, **{**own, **changes})

    def find(self, arguments: Arguments) -> dict[str, Any] | None:
        """The recorded results of a run."""
        name = run_name(arguments)
        return next((line["results"] for line in self.recorded if line["run"] == name), None)

    def run(self, method: str, arguments: Arguments) -> dict[str, Any]:
        """The results of a run, which is recorded if it was not."""
        found = self.find(arguments)
        if found is None:
            found = train.run(arguments)
            line = {"experiment": self.name, "method": method, "run": run_name(arguments)}
            self.recorded.append({**line, "threads": torch.get_num_threads(), "results": found})
            append_lines(self.options.results, [self.recorded[-1]])
        return found

    def searched(self, method: str) -> list[tuple[float, Arguments]]:
        """The rates of a method, and the run that tries each of them on held-out rows."""
        rates = [float(rate) for rate in self.methods[method].get("rates", [])]
        changes = {**self.experiment["search"], "seed": self.experiment["seeds"][0]}
        # GLUE has a development set, which is kept for the result.
        split = "held_out" if self.arguments(method).task == "glue" else "validation"
        if split == "validation":
            changes["eval_dataset"] = None
        return [(r, self.arguments(method, lr=r, test_split=split, **changes)) for r in rates]

    def rate(self, method: str, start: bool) -> float | None:
        """The best rate of a method; None if it is not known and runs may not be started."""
        scores = {}
        for rate, arguments in self.searched(method):
            found = self.run(method, arguments) if start else self.find(arguments)
            if found is None:
                return None
            scores[rate] = score(found)
        return max(scores, key=lambda r: scores[r]) if scores else None

    def results(self, method: str, start: bool) -> list[dict[str, Any]]:
        """The results of a method, one for each seed that was run."""
        rate = self.rate(method, start)
        if rate is None and self.methods[method].get("rates"):
            return []
        changes = {} if rate is None else {"lr": rate}
        seeds = [self.arguments(method, seed=s, **changes) for s in self.experiment["seeds"]]
        found = [self.run(method, a) if start else self.find(a) for a in seeds]
        return [results for results in found if results is not None]


def sets(results: dict[str, Any]) -> dict[str, float]:
    """Data set -> its score, of the metric that counts."""
    found = {k.removeprefix("eval/"): v for k, v in results.items() if k.startswith("eval/")}
    return {k: v["score"] if "score" in v else next(iter(_metrics(v))) for k, v in found.items()}


def _metrics(of_a_set: dict[str, float]) -> list[float]:
    return [value for name, value in of_a_set.items() if name != "rows"]


def score(results: dict[str, Any]) -> float:
    """The mean score over data sets."""
    return statistics.mean(sets(results).values())


def table(runs: Runs) -> str:
    """Every method's scores in percent, mean and deviation over seeds, as Markdown."""
    rows, names = [], []
    for method in runs.methods:
        results = runs.results(method, start=False)
        if not results:
            continue
        names = list(sets(results[0]))
        rates = [f"{rate:g}" for rate, _ in runs.searched(method)]
        best = runs.rate(method, start=False)
        columns = [[sets(r)[name] for r in results] for name in names]
        if len(names) > 1:
            columns.append([score(r) for r in results])
        trained = [r["cpu_seconds"] for r in results if "cpu_seconds" in r]
        reports = [v for r in results for k, v in r.items() if k.startswith("eval/")]
        rows.append(
            [
                method,
                f"{results[0]['n_params']:,}",
                "-" if best is None else f"{best:g} of {', '.join(rates)}",
                str(len(results)),
                *(_spread(column) for column in columns),
                str(sum(report.get("unextracted", 0) for report in reports)),
                f"{statistics.mean(trained):,.0f}" if trained else "-",
            ]
        )
    mean = ["mean"] if len(names) > 1 else []
    head = ["method", "parameters", "rate", "seeds", *names, *mean, "no answer", "CPU s to train"]
    return harness.table(head, rows)


def time_to_quality(runs: Runs, reference: str = "LoRA") -> str:
    """Every method's training time until the best held-out score of one of them, as Markdown.

    Times are those of the first seed, in processor seconds of training steps.
    """
    found = {method: runs.results(method, start=False) for method in runs.methods}
    curves = {m: r[0]["development"] for m, r in found.items() if r and r[0].get("development")}
    if reference not in curves:
        return ""
    target = max(entry["dev_score"] for entry in curves[reference])
    rows = []
    for method, curve in curves.items():
        reached = [entry["cpu_seconds"] for entry in curve if entry["dev_score"] >= target]
        best = max(entry["dev_score"] for entry in curve)
        first = f"{reached[0]:,.0f}" if reached else "not reached"
        rows.append([method, f"{100 * best:.1f}", first])
    head = ["method", "best held out", f"CPU s to {reference}'s best, {100 * target:.1f}"]
    return "\n\n" + harness.table(head, rows)


def draw(runs: Runs, path: Path) -> None:
    """A bar for each method: the mean score over data sets and seeds, and how seeds deviate."""
    found = {method: runs.results(method, start=False) for method in runs.methods}
    scores = {m: [100 * score(r) for r in results] for m, results in found.items() if results}
    scores = dict(sorted(scores.items(), key=lambda one: statistics.mean(one[1])))
    labels = [f"{m}\n{found[m][0]['n_params']:,} parameters" for m in scores]
    figure = Figure(figsize=(7, 0.6 * len(scores) + 1), layout="constrained")
    axes = figure.subplots()
    errors = [statistics.stdev(s) if len(s) > 1 else 0 for s in scores.values()]
    bars = axes.barh(labels, [statistics.mean(s) for s in scores.values()], xerr=errors)
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.set(title=runs.name, xlabel="score (%)", xlim=(0, 105))
    figure.savefig(path, dpi=110)


def _spread(scores: list[float]) -> str:
    mean = f"{100 * statistics.mean(scores):.1f}"
    return f"{mean} ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else mean


@command
def main() -> None:
    names = list(yaml.safe_load(EXPERIMENTS.read_text(encoding="utf-8")))
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=names)
    parser.add_argument("--data_dir", help="local folder; downloaded by default")
    parser.add_argument("--methods", nargs="+", help="run these alone; all by default")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is known")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines of all runs")
    parser.add_argument("--output_dir", default="out/loreft")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="put the table into this document as well")
    parser.add_argument("--picture", type=Path, help="draw the scores into this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = Runs(options.experiment, options)
    for method in options.methods or runs.methods:
        if method not in runs.methods:
            parser.error(f"no method {method!r} in {options.experiment}: {list(runs.methods)}")
        if not options.table:
            runs.results(method, start=True)
    about = {"device": "cuda" if torch.cuda.is_available() else "cpu", "suffix": ""}
    seeds = max(len(runs.results(method, start=False)) for method in runs.methods)
    about |= {"rounds": seeds, "out": Path(options.output_dir)}
    shown = Namespace(**vars(options), **about)
    harness.publish(options.experiment, shown, runs.recorded, table(runs) + time_to_quality(runs))
    if options.picture:
        draw(runs, options.picture)


if __name__ == "__main__":
    main()
