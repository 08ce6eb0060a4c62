"""Bytes that a training step keeps for backward, and the peak of the whole process.

    python examples/benchmarks/memory.py

What is kept is what autograd saves, each storage once, without the parameters of the model. The
peak is that of the process's resident memory, libraries and base model included; on a GPU, of
what torch allocated there.
"""

import harness
from step_time import SETTINGS, complete

MIB = 2**20


def main() -> None:
    arguments = harness.parse(
        __doc__,
        harness.METHODS,
        ("--settings", {"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS)}),
    )
    figures, rows = {}, []
    for name in arguments.settings:
        # A turn is an epoch, so that the next step has seen its rows before.
        setting = complete(name, harness.depth_of(arguments.model), 0, "float32")
        workers = harness.start(setting, arguments)
        harness.take_turns(workers, 1)
        figures[name] = {w.method: w.ask("saved") | w.ask("peak") for w in workers}
        for worker in workers:
            worker.close()
        own = figures[name][arguments.methods[0]]
        for method, found in figures[name].items():
            kept, peak = found["saved"], found["peak"]
            times = kept / max(own["saved"], 1)
            rows.append([name, method, f"{kept / MIB:.1f}", f"{times:.2f}x", f"{peak / MIB:.0f}"])
    head = ["setting", "method", "kept for backward, MiB", "of the first", "peak, MiB"]
    harness.publish("memory", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
