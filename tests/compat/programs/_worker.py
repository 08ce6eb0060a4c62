"""Run programs by name, each in a fork of this process and in a folder of its own.

Reads names from standard input, one on a line, and writes for each one line of JSON: its `numbers`
and how long it took, or "skipped", or "error" with the last lines of the traceback.
"""

import contextlib
import json
import math
import os
import runpy
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What programs print goes to the error stream.

with contextlib.suppress(ImportError):
    import peft  # noqa: F401
import datasets  # noqa: E402, F401
import torch  # noqa: E402

from pyreft import ReftTrainerForCausalLM  # noqa: E402, F401


class Skipped(Exception):
    """Raised by a program that needs what is not installed."""


def run(name):
    folder = Path.cwd() / f"{name}_{time.time_ns()}"
    folder.mkdir()
    os.chdir(folder)
    torch.manual_seed(0)
    started = time.time()
    sys.argv = [f"{name}.py"]
    try:
        names = runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    except BaseException as error:
        if type(error).__name__ == "Skipped":
            return {"skipped": str(error)}
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            f for f in frames if f.filename.startswith(str(HERE)) and "_worker" not in f.filename
        ]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return {"error": f"{where}: {type(error).__name__}: {str(error)[:600]}"}
    numbers = {key: _listed(value) for key, value in names["numbers"].items()}
    bad = [key for key, values in numbers.items() if not all(map(math.isfinite, values))]
    if bad or not numbers:
        return {"error": f"numbers that are not finite: {bad}, of {list(numbers)}"}
    tolerances = names.get("tolerances", {})
    return {"numbers": numbers, "tolerances": tolerances, "seconds": time.time() - started}


def _listed(value):
    return [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]


for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as back:
            back.write(json.dumps(run(line.strip())))
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as back:
        result = back.read()
    os.waitpid(child, 0)
    print(result or json.dumps({"error": "the process ended"}), file=answers, flush=True)
