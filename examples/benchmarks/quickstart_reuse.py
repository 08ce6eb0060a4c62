"""Training in examples/quickstart.py, with the reuse of frozen computation and without.

python examples/benchmarks/quickstart_reuse.py [--rounds 3]
"""

import io
import re
import runpy
import statistics
import sys
import tempfile
from contextlib import redirect_stdout

import harness

SCRIPT = harness.HERE.parent / "quickstart.py"


def trained(arguments, *more: str) -> float:
    """The seconds that one run says it trained."""
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()) as printed:
        sys.argv = [str(SCRIPT), "--model", arguments.model, "--out", directory]
        sys.argv += ["--epochs", str(arguments.epochs), *more]
        runpy.run_path(str(SCRIPT), run_name="__main__")
    found = re.search(r"Trained in ([\d.]+) s", printed.getvalue())
    assert found
    return float(found[1])


def main() -> None:
    arguments = harness.parse(__doc__, [], ("--epochs", {"type": int, "default": 40}))
    # What the examples share lies beside them.
    sys.path.append(str(SCRIPT.parent))
    ways = {"reuse": (), "no reuse": ("--no-reuse",)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, more in ways.items():
            seconds[name].append(trained(arguments, *more))
    medians = [f"{statistics.median(seconds[name]):.1f} s" for name in ways]
    row = [f"{arguments.epochs} epochs", *medians]
    row.append(f"{harness.ratio(seconds, 'no reuse', 'reuse'):.2f}x")
    head = ["quickstart", "with reuse", "without", "ratio"]
    harness.publish("quickstart_reuse", arguments, seconds, harness.table(head, [row]))


if __name__ == "__main__":
    main()
