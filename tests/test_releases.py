"""tests/releases.py: which releases have a row, what runs again, and what the table says."""

import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pyreft.installed.releases import TESTED

pytest.importorskip("tomllib")  # Python 3.11

import releases
import releases_table

VERSIONS = ["5.10.0", "5.9.1", "5.9.0", "5.10.2", "5.8.0", "6.0.0", "5.11.0rc1", "4.57.0", "5.0.0"]
LISTED = f"""thing (6.0.0)
Available versions: {", ".join(VERSIONS)}
  INSTALLED: 5.9.0
"""
BEGIN, END = releases_table.BEGIN, releases_table.END


def result(package, version, **found):
    ran = {"status": "passed", "tests": 9, "failed": 0, "date": "2026-11-29", "commit": "abc"}
    versions = {"transformers": "5.24.0", "torch": "2.13.0+cpu", "python": "3.11.7"}
    return {"package": package, "version": version, "machine": "x86_64"} | (
        ran | {"versions": versions} | found
    )


@pytest.fixture
def available(monkeypatch):
    """Every package has the same releases, and there is one Python."""
    monkeypatch.setattr(releases, "released", lambda package: VERSIONS)
    monkeypatch.setattr(releases, "supported", lambda package, _: SpecifierSet(">=5.0,<6"))
    monkeypatch.setattr(releases, "interpreter", {"3.11": "python"}.get)


@pytest.fixture
def ran(available, monkeypatch):
    """The rows that ran. Every row passes; PEFT's second one of a run is interrupted."""
    rows = []

    def run(row, keep, processes):
        rows.append(str(row))
        if row.package == "peft" and len(rows) > 1:
            raise KeyboardInterrupt
        return result(row.package, row.version)

    monkeypatch.setattr(releases, "run", run)
    return rows


def test_a_minor_release_is_its_newest_patch():
    found = releases.newest_patches(VERSIONS, SpecifierSet(">=5.0,<6"))
    assert found == ["5.10.2", "5.9.1", "5.8.0", "5.0.0"]


def test_a_build_is_the_release_that_it_builds():
    assert releases.newest_patches(["2.13.0", "2.13.0+cpu"], SpecifierSet(">=2")) == ["2.13.0"]


def test_transformers_has_every_minor_release_and_others_have_three(available):
    rows = [str(row) for row in releases.all_rows()]
    assert [row for row in rows if "transformers" in row] == [
        f"transformers {version}" for version in ("5.10.2", "5.9.1", "5.8.0", "5.0.0")
    ]
    for package in ("torch", "accelerate", "datasets", "peft", "trl"):
        assert sum(row.startswith(f"{package} ") for row in rows) == 3
    assert sum(row.startswith("python 3.") for row in rows) == 5


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("peft", ["peft 5.10.2", "peft 5.9.1", "peft 5.8.0"]),
        ("transformers==5.24.0", []),
        ("transformers==5.9.0", ["transformers 5.9.0"]),  # not the newest patch, but asked for
        ("trl==5.0.0", ["trl 5.0.0"]),  # older than the last three
        ("python==3.12", ["python 3.12"]),
    ],
)
def test_only_chooses_a_package_or_a_release(available, only, expected):
    assert [str(row) for row in releases.all_rows(only)] == expected


def test_only_of_another_package_is_refused_with_those_that_there_are(available):
    with pytest.raises(SystemExit, match="there are rows of transformers, torch"):
        releases.all_rows("numpy")


def test_pyproject_states_what_is_supported():
    stated = releases.requirements()
    assert not any("pyreft" in line for line in stated)
    assert "5.0.0" in releases.supported("transformers", stated)
    assert "6.0.0" not in releases.supported("transformers", stated)
    for package in set(releases.PACKAGES) - {"python"}:
        releases.supported(package, stated)


def test_every_path_to_test_and_to_leave_out_is_there():
    for path in {path for tests, _ in releases.PACKAGES.values() for path in tests}:
        assert (releases.ROOT / path).exists(), path
    for name in releases.LEFT_OUT:
        assert list(releases.ROOT.glob(f"tests/*/test_{name}.py")), name


def test_versions_are_read_from_what_pip_lists(monkeypatch):
    class Done:
        stdout = LISTED

    monkeypatch.setattr(releases.subprocess, "run", lambda *_, **__: Done)
    assert releases.released("thing") == VERSIONS


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ERROR: No matching distribution found for a==9\n", "No matching distribution found"),
        ("The user requested a==9\n (constraint) a<=8\nERROR: ResolutionImpossible", "a<=8"),
        ("one\ntwo", "two"),
    ],
)
def test_the_reason_of_a_failed_installation_is_one_line(said, expected):
    assert expected in releases.reason(said)


def test_a_stopped_run_goes_on_where_it_was(ran, tmp_path):
    arguments = ["--only", "peft", "--results", str(tmp_path / "r.jsonl"), "--keep", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        releases.main(arguments)
    assert ran == ["peft 5.10.2", "peft 5.9.1"]
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        releases.main(arguments)
    assert ran == ["peft 5.9.1", "peft 5.8.0"]


def test_a_missing_python_is_looked_for_again(ran, tmp_path):
    file = tmp_path / "r.jsonl"
    missing = result("python", "3.11", status="missing")
    releases_table.append(file, missing)
    releases_table.append(file, result("python", "3.12"))
    releases.main(["--only", "python>=3.11,<3.13", "--results", str(file)])
    assert ran == ["python 3.11"]
    assert releases_table.read(file)["python", "3.11"]["status"] == "passed"


def test_listing_runs_nothing(ran, tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    releases_table.append(file, result("peft", "5.9.1", status="failed", failed=1, first="a::b"))
    assert releases.main(["--only", "peft", "--rows", "--results", str(file)]) == 1
    assert ran == []
    assert capsys.readouterr().out.splitlines() == [
        "peft 5.10.2: to run",
        "peft 5.9.1: failed 1 of 9, first `a::b`",
        "peft 5.8.0: to run",
    ]


def test_the_table_says_what_differs_and_beneath_what_rows_share(ran, tmp_path):
    file, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    other = {"transformers": "5.9.1", "torch": "2.13.0+cpu", "python": "3.12.1"}
    for one in [
        result("python", "3.14", status="missing", versions={}),
        result("transformers", "5.9.1", versions={"torch": "2.13.0+cpu", "python": "3.11.7"}),
        result("transformers", "5.10.2", versions={"torch": "2.13.0+cpu", "python": "3.11.7"}),
        result("torch", "2.15.0", status="not installed", reason="too large", versions={}),
        result("peft", "0.2.0", status="failed", failed=2, first="t::a[x|y]", versions=other),
        result("python", "3.12", date="2026-11-30", versions=other | {"transformers": "5.24.0"}),
        result("trl", "1.1.0"),
    ]:
        releases_table.append(file, one)
    page.write_text(f"prose\n{BEGIN}\nold\n{END}\nmore prose\n")
    releases.main(["--only", "trl", "--rows", "--results", str(file), "--write", str(page)])
    assert page.read_text().splitlines() == [
        "prose",
        BEGIN,
        "| release | tests | with |",
        "|---|---|---|",
        "| transformers 5.10.2 | passed (9) |  |",
        "| transformers 5.9.1 | passed (9) |  |",
        "| torch 2.15.0 | cannot be installed: too large |  |",
        "| peft 0.2.0 | failed 2 of 9, first `t::a[x\\|y]` | transformers 5.9.1, python 3.12.1 |",
        "| trl 1.1.0 | passed (9) |  |",
        "| python 3.14 | not available on this machine |  |",
        "| python 3.12 | passed (9) | python 3.12.1 |",
        "",
        "Run from 2026-11-29 to 2026-11-30 on x86_64, with pyreft at abc. "
        "Unless a row says otherwise,",
        "with torch 2.13.0+cpu, python 3.11.7, transformers 5.24.0.",
        END,
        "more prose",
    ]


def test_a_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("prose")
    with pytest.raises(SystemExit, match="has no <!-- releases: begin -->"):
        releases_table.write(page, "table")
    assert page.read_text() == "prose"


REPORT = """<testsuites><testsuite>
<testcase classname="tests.reuse.test_exact" name="test_a" />
<testcase classname="tests.reuse.test_exact" name="test_b"><skipped /></testcase>
<testcase classname="tests.reuse.test_exact" name="test_c[x]"><failure /></testcase>
<testcase classname="" name="tests.reuse.test_work"><error /></testcase>
</testsuite></testsuites>"""


def test_the_first_failure_of_a_report_is_named(tmp_path):
    file = tmp_path / "report.xml"
    file.write_text(REPORT)
    assert releases_table.read_report(file) == {
        "status": "failed",
        "tests": 3,
        "failed": 2,
        "first": "tests/reuse/test_exact.py::test_c[x]",
    }


def test_a_report_without_tests_is_a_failure(tmp_path):
    file = tmp_path / "report.xml"
    file.write_text("<testsuites />")
    assert releases_table.outcome(releases_table.read_report(file)) == "failed: no test ran"


def test_the_page_of_the_repository_has_its_table():
    page = (Path(releases.ROOT) / "docs" / "compatibility.md").read_text()
    assert re.search(f"{BEGIN}\n.*{END}", page, re.S)


# ---- what is said of releases in other places ----------------------------------------------------


def rows_of_the_page():
    page = (releases.ROOT / "docs" / "compatibility.md").read_text()
    text = page.partition(BEGIN)[2].partition(END)[0]
    found = re.findall(r"^\| (\w+) ([\d.]+) \| (.+?) \|", text, re.M)
    passed: dict[str, list[Version]] = {}
    # What the rows ran with, unless they say otherwise.
    for package, version in re.findall(r"(\w+) (\d+\.[\d.]*\d)", text.rpartition("\nwith ")[2]):
        passed[package] = [Version(version)]
    for package, version, outcome in found:
        if outcome.startswith("passed"):
            passed.setdefault(package, []).append(Version(version))
    return passed


# Minor releases of transformers whose rows did not pass, for the reason that the page gives.
EXPLAINED = {2}


@pytest.mark.parametrize("package", TESTED)
def test_the_tested_range_is_what_the_page_has_rows_for(package):
    rows, (oldest, newest) = rows_of_the_page()[package], map(Version, TESTED[package])
    assert (min(rows).release[:2], max(rows).release[:2]) == (
        oldest.release[:2],
        newest.release[:2],
    )
    admitted = releases.supported(package, releases.requirements())
    assert oldest in admitted
    before = Version(
        f"{oldest.major}.{oldest.minor - 1}" if oldest.minor else f"{oldest.major - 1}"
    )
    assert before not in admitted
    if package == "transformers":
        minors = {row.release[1] for row in rows}
        assert set(range(max(minors) + 1)) - minors == EXPLAINED
