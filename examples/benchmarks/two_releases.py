"""Steps and generation on the installed transformers and on 5.23.0, in turn.

    python examples/benchmarks/two_releases.py

5.23.0 is the last release before models called their cache `cache`; it gets an environment of its
own. Both run the same pyreft on the same base model. `generate bare` is that model without the
adapter, so that what a release itself gained or lost can be told apart.
"""

import statistics

import harness
from step_time import SETTINGS, complete

METHODS = ["pyreft", harness.OTHER_RELEASE]


def measure(name: str, arguments) -> dict[str, dict[str, list[float]]]:
    """Seconds of steps whose rows were seen before, and of generations, by method."""
    depth = harness.depth_of(arguments.model)
    setting = {**complete(name, depth, arguments.rounds, "float32"), "rows": 16}
    workers = harness.start(setting, arguments)
    harness.take_turns(workers, 1)
    found = {"step": harness.take_turns(workers, arguments.rounds)}
    for command in ("generate", "generate bare"):
        ways = {w.method: lambda w=w, c=command: w.ask(c)["seconds"] for w in workers}
        found[command] = harness.in_turn(ways, arguments.rounds)
    for worker in workers:
        worker.close()
    return found


def main() -> None:
    arguments = harness.parse(
        __doc__,
        METHODS,
        ("--settings", {"nargs": "+", "default": ["l1", "paper"], "choices": list(SETTINGS)}),
    )
    figures, rows = {}, []
    for name in arguments.settings:
        figures[name] = measure(name, arguments)
        for what, seconds in figures[name].items():
            medians = [f"{statistics.median(seconds[m]):.3f} s" for m in arguments.methods]
            times = harness.ratio(seconds, arguments.methods[0], arguments.methods[-1])
            rows.append([name, what, *medians, f"{times:.3f}x"])
    head = ["setting", "what", *arguments.methods, "ratio"]
    harness.publish("two_releases", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
