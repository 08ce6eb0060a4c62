"""Milliseconds to put a saved adapter onto a base model that is loaded.

python examples/benchmarks/loading.py
"""

import statistics
import tempfile
import time

import harness
import pyreft


def milliseconds(base, directory: str) -> float:
    """Time one load, and take the adapter off again."""
    start = time.perf_counter()
    model = pyreft.ReftModel.from_pretrained(base, directory)
    found = 1000 * (time.perf_counter() - start)
    model.unwrap()
    return found


def main() -> None:
    arguments = harness.parse(__doc__, [])
    base = harness.load(arguments)
    figures, rows = {}, []
    middle = base.config.num_hidden_layers // 2
    for name, config in {
        "l1, one layer": pyreft.ReftConfig(layers=[middle], positions="l1", rank=4),
        "f7+l7, all layers": pyreft.ReftConfig(positions="f7+l7", rank=8),
    }.items():
        with tempfile.TemporaryDirectory() as directory:
            model = pyreft.get_reft_model(base, config)
            model.save_pretrained(directory)
            model.unwrap()
            found = [milliseconds(base, directory) for _ in range(1 + arguments.rounds)]
        figures[name] = found[1:]
        rows.append([name, f"{found[0]:.1f} ms", f"{statistics.median(found[1:]):.1f} ms"])
    head = ["adapter", "the first time", "again, median"]
    harness.publish("loading", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
