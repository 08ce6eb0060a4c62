"""The results of tests/releases.py: a JSON lines file, and the table that is made from it."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- releases: begin -->", "<!-- releases: end -->"
Result = Mapping[str, Any]


def key(result: Result) -> tuple[str, str]:
    return result["package"], result["version"]


def read(results: Path) -> dict[tuple[str, str], Result]:
    """The results that are in the file; of two for one release, the later one."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {key(result): result for result in map(json.loads, lines)}


def append(results: Path, result: Result) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(result) + "\n")


def read_report(report: Path) -> dict[str, Any]:
    """What pytest's JUnit file says: how many tests ran, how many of them failed, and the first."""
    cases = [c for c in ElementTree.parse(report).iter("testcase") if c.find("skipped") is None]
    if not cases:
        return {"status": "failed", "reason": "no test ran"}
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    result: dict[str, Any] = {"status": "failed" if failed else "passed"}
    if failed:
        file = failed[0].get("classname", "").replace(".", "/")
        result["first"] = f"{file}.py::{failed[0].get('name')}" if file else failed[0].get("name")
    return result | {"tests": len(cases), "failed": len(failed)}


def outcome(result: Result) -> str:
    """The result of a row in words."""
    if result["status"] == "missing":
        return "not available on this machine"
    if result["status"] == "not installed":
        return f"cannot be installed: {result['reason']}"
    if "reason" in result:
        return f"failed: {result['reason']}"
    if result["status"] == "failed":
        return f"failed {result['failed']} of {result['tests']}, first `{result['first']}`"
    return f"passed ({result['tests']})"


def table(results: Sequence[Result]) -> str:
    """The table, in the order of the results, and beneath it the versions that most rows share."""
    versions = [result["versions"] for result in results if "versions" in result]
    names = list(dict.fromkeys(name for found in versions for name in found))
    shared = {n: Counter(v[n] for v in versions if n in v).most_common(1)[0][0] for n in names}
    lines = ["| release | tests | with |", "|---|---|---|"]
    for result in results:
        own = {"python": ""}.get(result["package"], result["package"])
        found = {n: v for n, v in result.get("versions", {}).items() if n != own}
        other = [f"{n} {v}" for n, v in found.items() if v != shared[n]]
        other += [f"no {n}" for n in names if found and n not in {*found, own}]
        cells = (" ".join(key(result)), outcome(result), ", ".join(other))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")

    dates = sorted({result["date"] for result in results})
    when = f"on {dates[0]}" if len(dates) == 1 else f"from {dates[0]} to {dates[-1]}"
    machines = ", ".join(sorted({result["machine"] for result in results}))
    commits = ", ".join(dict.fromkeys(result["commit"] for result in results))
    lines += [
        "",
        f"Run {when} on {machines}, with pyreft at {commits}. Unless a row says otherwise,",
    ]
    lines += [f"with {', '.join(f'{name} {version}' for name, version in shared.items())}."]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Replace what is between the two markers of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no {BEGIN} and {END}, between which the table is written.")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
