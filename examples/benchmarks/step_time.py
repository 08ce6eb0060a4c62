"""Seconds of a training step by setting, beside other ways to train and what the machine can do.

    python examples/benchmarks/step_time.py
    python examples/benchmarks/step_time.py --methods pyreft bare --settings paper --rounds 20

The methods take turns, see harness.py. The first epoch is the one in which nothing of
the data has been seen; from the second on, what was kept is used. `bare` is the frozen model alone:
forward, backward to its embeddings, logits of labelled tokens.
"""

import statistics

import harness

SETTINGS = {
    "l1": {"positions": (0, 1), "rank": 4, "prompt": 96, "completion": 32},
    "l1, long prompt": {"positions": (0, 1), "rank": 4, "prompt": 224, "completion": 8},
    "paper": {"positions": (7, 7), "rank": 8, "prompt": 96, "completion": 32},
}


def complete(name: str, depth: int, rounds: int, dtype: str) -> dict:
    """A setting with its layers (the middle one, or all) and rows for so many turns an epoch."""
    layers = list(range(depth)) if name == "paper" else [depth // 2]
    sizes = {"batch": 8, "rows": 2 * 8 * (1 + rounds), "dtype": dtype}
    return {**SETTINGS[name], "layers": layers, **sizes}


def measure(name: str, dtype: str, arguments) -> dict[str, dict[str, list[float]]]:
    """Seconds of the steps of the first epoch, but for its first turn, and of the second."""
    depth = harness.depth_of(arguments.model)
    workers = harness.start(complete(name, depth, arguments.rounds, dtype), arguments)
    harness.take_turns(workers, 1)
    found = {"first": harness.take_turns(workers, arguments.rounds)}
    harness.take_turns(workers, 1)
    found["later"] = harness.take_turns(workers, arguments.rounds)
    for worker in workers:
        worker.close()
    return found


def main() -> None:
    arguments = harness.parse(
        __doc__,
        harness.METHODS,
        ("--settings", {"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS)}),
        ("--dtypes", {"nargs": "+", "default": ["float32"], "choices": ["float32", "bfloat16"]}),
    )
    figures, rows = {}, []
    for name in arguments.settings:
        for dtype in arguments.dtypes:
            figures[f"{name}, {dtype}"] = found = measure(name, dtype, arguments)
            for epoch, seconds in found.items():
                own = statistics.median(seconds[arguments.methods[0]])
                cells = [name, dtype, epoch, f"{own:.3f} s"]
                for method in arguments.methods[1:]:
                    times = harness.ratio(seconds, method, arguments.methods[0])
                    cells.append(f"{statistics.median(seconds[method]):.3f} s, {times:.2f}x")
                rows.append(cells)
    head = ["setting", "type", "epoch", *arguments.methods]
    types = "" if arguments.dtypes == ["float32"] else "_" + "_".join(arguments.dtypes)
    harness.publish(f"step_time{types}", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
