"""Run the tests on other releases of what pyreft depends on, one row of a table for each release.

    python tests/releases.py --rows                         # list the rows, run nothing
    python tests/releases.py --write docs/compatibility.md  # run what is missing, write the table
    python tests/releases.py --only "transformers==5.24.0"  # one release, or all of a package

A row runs in an environment of its own, which holds only what differs from a base environment:

    base-3.11/               the newest of everything, torch as in tests/constraints-newest.txt
    transformers-5.3.0/      transformers 5.3.0, what it requires instead, and a path to the base

Results are appended to a JSON lines file, row by row. A row that is in the file does not run again;
delete its line to repeat it.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import releases_table
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
GENERATION = ("generation", "shared_prefix", "mixed")
ALL = [
    *(f"tests/adapters/test_{name}.py" for name in GENERATION),
    *("tests/installed", "tests/reuse", "tests/training", "tests/sharing"),
]
# Package -> its tests, and how many minor releases have a row (0: every supported one).
PACKAGES: dict[str, tuple[list[str], int]] = {
    "transformers": (ALL, 0),
    "torch": (ALL, 3),
    "accelerate": (["tests/training"], 3),
    "datasets": (["tests/training", "tests/data"], 3),
    "peft": (["tests/lora/test_merging.py", "tests/adapters/test_trained.py"], 3),
    "trl": (["tests/training/test_trl.py"], 3),
    "python": (ALL, 0),
}
# Not in any row but those that name them: slow, or about our own files rather than a release.
LEFT_OUT = [
    *("deepspeed", "distributed", "killed", "pushing", "pushed_card", "reward", "bad_runs", "trl"),
    *("atomic", "bad_checkpoint", "hostile", "links", "card", "format", "hub"),
    *("hub_errors", "optimization", "offload", "seq2seq", "classification", "store", "facts"),
    *("generated_predictions", "exact", "evaluation", "loops"),
]
SLOW = "compiled_models or fresh_process or (fifty_steps and right)"
PYTHONS = ["3.14", "3.13", "3.12", "3.11", "3.10"]
# What is recorded of an environment beside the package of the row.
RECORDED = (
    "transformers huggingface_hub tokenizers safetensors torch accelerate datasets peft trl numpy"
)
# Imports the package of the row, and prints the versions that Python finds first.
PROBE = """
import importlib.metadata, importlib.util, json, sys
package, *recorded = sys.argv[1:]
if package != "python":
    module = importlib.import_module(package)
    # A build is named in one of them: 2.14.1+cu130.
    stated = importlib.metadata.version(package).partition("+")[0]
    assert module.__version__.partition("+")[0] == stated, module.__file__
found = [name for name in recorded if importlib.util.find_spec(name)]
versions = {name: importlib.metadata.version(name) for name in found}
print(json.dumps(versions | {"python": sys.version.split()[0]}))
"""
SECONDS = 3600  # that the tests of a row may take
THIS_PYTHON = "{}.{}".format(*sys.version_info)


class CannotInstallError(Exception):
    """Why an environment cannot be made, in one line."""


@dataclass(frozen=True)
class Row:
    """A release to run the tests on. Without an interpreter it is not on this machine."""

    package: str
    version: str
    interpreter: str | None = field(default=sys.executable, compare=False)

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def requirements() -> list[str]:
    """All that the tests need, as pyproject.toml states it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    stated = [*project["dependencies"], *optional["examples"], *optional["test"]]
    return [line for line in stated if Requirement(line).name != project["name"]]


def supported(package: str, stated: Iterable[str]) -> SpecifierSet:
    """The releases of a package that pyproject.toml admits."""
    return next(r.specifier for r in map(Requirement, stated) if r.name == package)


def newest_patches(versions: Iterable[str], admitted: SpecifierSet, count: int = 0) -> list[str]:
    """The newest patch of each minor release, newest first: all of them, or the first `count`."""
    newest: dict[tuple[int, int], Version] = {}
    for version in map(Version, versions):
        if version.is_prerelease or version not in admitted:
            continue
        minor = version.major, version.minor
        newest[minor] = max(version, newest.get(minor, version))
    return [newest[minor].public for minor in sorted(newest, reverse=True)][: count or None]


def released(package: str) -> list[str]:
    """Versions that pip can install with this Python. It leaves out yanked ones."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"[^\s,]+", listed.split("Available versions:")[1].splitlines()[0])


def interpreter(python: str) -> str | None:
    """The path of a Python on this machine, as of "3.12"."""
    built = sorted((Path.home() / ".pyenv" / "versions").glob(f"{python}.*/bin/python"))
    for candidate in [sys.executable, shutil.which(f"python{python}"), *map(str, built)]:
        # A shim of pyenv is there for a Python that is not active, and fails.
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = [candidate or "", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if found.strip() == python:
                return candidate
    return None


def all_rows(only: str = "") -> list[Row]:
    """The rows of all packages, or of the one that `only` names, as "peft" or "peft==0.21.0"."""
    chosen = Requirement(only) if only else None
    if chosen and chosen.name not in PACKAGES:
        raise SystemExit(f"--only {only}: there are rows of {', '.join(PACKAGES)}")
    rows = []
    for package in [chosen.name] if chosen else PACKAGES:
        admitted = chosen.specifier if chosen else SpecifierSet()
        if package == "python":
            rows += [Row(package, v, interpreter(v)) for v in PYTHONS if v in admitted]
        else:
            admitted &= supported(package, requirements())
            versions = newest_patches(released(package), admitted, PACKAGES[package][1])
            rows += [Row(package, version) for version in versions]
    return rows


def reason(said: str) -> str:
    """Why pip cannot install, in one line of what it printed."""
    if limits := re.findall(r"\(constraint\) (\S+)", said):
        return f"pip on this machine is limited to {', '.join(sorted(set(limits)))}"
    return last_line("\n".join(re.findall(r"ERROR: (.*)", said)[:1]) or said)


def last_line(said: str) -> str:
    return (said.strip().splitlines() or ["nothing was printed"])[-1][:200]


def make_environment(path: Path, python: str, *wanted: str, on: Path | None = None) -> None:
    """Make a virtual environment, unless it is there; what `on` holds can be imported in it."""
    if (path / "complete").exists():
        return
    shutil.rmtree(path, ignore_errors=True)
    subprocess.run([python, "-m", "venv", "--without-pip", path], check=True)
    if on:
        (below,) = on.glob("lib/python3.*/site-packages")
        (own,) = path.glob("lib/python3.*/site-packages")
        # Behind its own site-packages on sys.path, so that what is installed here is imported.
        (own / "base.pth").write_text(f"{below}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(path / "bin" / "python"), "install"]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise CannotInstallError(reason(done.stdout + done.stderr))
    (path / "complete").touch()


def environment_of(row: Row, keep: Path) -> Path:
    """The environment of a row, made in `keep`."""
    assert row.interpreter is not None
    here = row.interpreter == sys.executable
    base = keep / f"base-{THIS_PYTHON if here else row.version}"
    # The build of torch that the constraint names is for the Python of CI.
    limit = ["-c", str(ROOT / "tests" / "constraints-newest.txt")] if here else []
    make_environment(base, row.interpreter, *limit, "-e", f"{ROOT}[test]")
    if row.package == "python":
        return base
    path = keep / f"{row.package}-{row.version}"
    # With all requirements, so that pip replaces a package that does not go with the row's.
    wanted = [f"{row.package}=={row.version}", *requirements()]
    make_environment(path, row.interpreter, *wanted, on=base)
    return path


def run_tests(environment: Path, row: Row, processes: int) -> dict[str, Any]:
    """Run the tests of a row: what failed, and the versions that were imported."""
    python = str(environment / "bin" / "python")
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    probe = [python, "-c", PROBE, row.package, *RECORDED.split()]
    options: dict[str, Any] = {"cwd": ROOT, "env": variables, "capture_output": True, "text": True}
    probed = subprocess.run(probe, **options)
    if probed.returncode:
        return {"status": "failed", "reason": last_line(probed.stderr)}
    versions = json.loads(probed.stdout)
    imported = versions[row.package]
    assert imported in SpecifierSet(f"=={row.version}.*"), f"{row}: {imported} was imported"
    tests = PACKAGES[row.package][0]
    left_out = [name for name in LEFT_OUT if not any(name in test for test in tests)]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-n", str(processes if processes > 1 else 0), "-k", f"not ({SLOW})", *tests]
        command += ["-Wdefault"]  # an older release may warn of what a newer one does not
        command += [f"--ignore-glob=*/test_{name}.py" for name in left_out]
        result = {"status": "failed", "reason": f"stopped after {SECONDS} seconds"}
        with contextlib.suppress(subprocess.TimeoutExpired):
            ran = subprocess.run(command, timeout=SECONDS, **options)
            result["reason"] = last_line(ran.stdout + ran.stderr)
        if report.exists():
            result = releases_table.read_report(report)
    return result | {"versions": versions}


def run(row: Row, keep: Path, processes: int) -> dict[str, Any]:
    """The result of a row, as it is recorded."""
    started = time.monotonic()
    if row.interpreter is None:
        result: dict[str, Any] = {"status": "missing"}
    else:
        try:
            environment = environment_of(row, keep)
            installed = time.monotonic()
            result = run_tests(environment, row, processes)
            result["seconds"] = round(time.monotonic() - installed)
            result["seconds_to_install"] = round(installed - started)
        except CannotInstallError as error:
            result = {"status": "not installed", "reason": str(error)}
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.check_output(describe, cwd=ROOT, text=True).strip()
    made = {"machine": platform.machine(), "date": str(date.today()), "commit": commit}
    return {"package": row.package, "version": row.version} | made | result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a package, or a release: transformers==5.24.0")
    parser.add_argument("--rows", action="store_true", help="list the rows, run nothing")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the environments here")
    parser.add_argument("--processes", type=int, default=1, help="of pytest (default: 1)")
    parser.add_argument("--results", type=Path, default=ROOT / "out" / "releases.jsonl")
    options = parser.parse_args(arguments)
    rows = all_rows(options.only)
    done = releases_table.read(options.results)
    if options.rows:
        for row in rows:
            result = done.get((row.package, row.version))
            print(f"{row}: {releases_table.outcome(result) if result else 'to run'}")
    else:
        # A Python that was missing may be there now.
        over = {key for key, result in done.items() if result["status"] != "missing"}
        run_all([row for row in rows if (row.package, row.version) not in over], options)
        done = releases_table.read(options.results)
    if options.write and done:
        in_order = sorted(done.values(), key=lambda r: Version(r["version"]), reverse=True)
        in_order.sort(key=lambda r: list(PACKAGES).index(r["package"]))
        releases_table.write(options.write, releases_table.table(in_order))
    results = [done.get((row.package, row.version), {}) for row in rows]
    return int(any(result.get("status") == "failed" for result in results))


def run_all(rows: list[Row], options: argparse.Namespace) -> None:
    """Run the rows and append each result to the file."""
    with tempfile.TemporaryDirectory(prefix="releases-") as temporary:
        keep = options.keep.resolve() if options.keep else Path(temporary)
        for row in (bar := tqdm(rows, unit="row")):
            bar.set_description(str(row))
            result = run(row, keep, options.processes)
            releases_table.append(options.results, result)
            bar.write(f"{row}: {releases_table.outcome(result)}")
            if not options.keep:  # All but the base environment of this Python.
                for path in set(keep.iterdir()) - {keep / f"base-{THIS_PYTHON}"}:
                    shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
