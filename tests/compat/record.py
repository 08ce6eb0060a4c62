"""Run the programs in upstream's environment, and record their numbers for the tests.

    python tests/compat/record.py --python /path/to/upstream/bin/python [names]

That Python has pyreft 0.1.0, pyvene 0.1.8, transformers 4.45.1 and peft 0.13.2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
NUMBERS = Path(__file__).parent / "upstream_numbers.json"


def names():
    return sorted(path.stem for path in PROGRAMS.glob("*.py") if not path.stem.startswith("_"))


class Runner:
    """A Python that has imported what is slow to import, and runs a program in a fork of itself."""

    def __init__(self, python, folder):
        # Not the repository, from which Python would import our package.
        self.folder = Path(folder)
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, PROGRAMS / "_worker.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env=os.environ | offline,
            text=True,
        )

    def run(self, name):
        """The numbers of a program, or a dict with the key "error"."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that runs the programs ended before {name} did")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def as_text(recorded):
    """JSON with a line for each list of numbers, which are cut to seven digits."""
    programs = []
    for name, numbers in recorded.items():
        rows = [
            f"  {json.dumps(key)}: [{', '.join(f'{value:.7g}' for value in values)}]"
            for key, values in numbers.items()
        ]
        programs.append(f" {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(programs) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="upstream's")
    parser.add_argument("--dry", action="store_true", help="print what fails, record nothing")
    parser.add_argument("names", nargs="*", help="programs; all by default")
    arguments = parser.parse_args()
    recorded = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as folder, Runner(arguments.python, folder) as runner:
        for name in arguments.names or names():
            result = runner.run(name)
            if "error" in result:
                print(f"{name}: {result['error']}")
                failed.append(name)
                recorded.pop(name, None)
            elif "skipped" in result:
                print(f"{name}: skipped, {result['skipped']}")
                recorded.pop(name, None)
            else:
                print(f"{name}: {result['seconds']:.1f} s, {', '.join(result['numbers'])}")
                recorded[name] = result["numbers"]
    if not arguments.dry:
        recorded = {name: recorded[name] for name in sorted(recorded) if name in names()}
        NUMBERS.write_text(as_text(recorded))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
