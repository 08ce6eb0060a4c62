"""Small programs in the style of each script that uses upstream, run on ours.

Upstream's numbers are in upstream_numbers.json: record.py ran the same programs there. With the
environment variable PYREFT_UPSTREAM_PYTHON, the marker `upstream` runs them there again.
"""

import json
import math
import os
import sys

import pytest
from record import NUMBERS, Runner, names

RECORDED = json.loads(NUMBERS.read_text())
UPSTREAM = os.environ.get("PYREFT_UPSTREAM_PYTHON")
TOLERANCE = 1e-4


class Results:
    """What programs leave in one Python, each run once and when it is first asked for."""

    def __init__(self, python, folder):
        self.python, self.folder, self.runner, self.kept = python, folder, None, {}

    def __getitem__(self, name):
        if name not in self.kept:
            if self.runner is None or self.runner.process.poll() is not None:
                self.runner = Runner(self.python, self.folder)
            self.kept[name] = self.runner.run(name)
        result = self.kept[name]
        if "skipped" in result:
            pytest.skip(result["skipped"])
        assert "error" not in result, result["error"]
        return result


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    results = Results(sys.executable, tmp_path_factory.mktemp("ours"))
    yield results
    if results.runner is not None:
        results.runner.close()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    if not UPSTREAM:
        pytest.skip("PYREFT_UPSTREAM_PYTHON is not set")
    results = Results(UPSTREAM, tmp_path_factory.mktemp("upstream"))
    yield results
    if results.runner is not None:
        results.runner.close()


def assert_equal(result, expected):
    """Each number to 1e-4, relative where it is above 1; a program may name another tolerance."""
    assert result["numbers"].keys() == expected.keys()
    for key, values in result["numbers"].items():
        tolerance = result["tolerances"].get(key, TOLERANCE)
        assert len(values) == len(expected[key]), key
        for index, (ours, theirs) in enumerate(zip(values, expected[key], strict=True)):
            close = math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)
            assert close, f"{key}, number {index}: {ours}, upstream {theirs}"


@pytest.mark.parametrize("name", names())
def test_program_runs_on_ours(ours, name):
    assert ours[name]["numbers"]


@pytest.mark.parametrize("name", names())
def test_program_gives_the_numbers_recorded_from_upstream(ours, name):
    result = ours[name]
    assert name in RECORDED, f"run tests/compat/record.py for {name}"
    assert_equal(result, RECORDED[name])


@pytest.mark.upstream
@pytest.mark.parametrize("name", names())
def test_program_gives_upstreams_numbers(ours, upstream, name):
    assert_equal(ours[name], upstream[name]["numbers"])


@pytest.mark.upstream
@pytest.mark.parametrize("name", names())
def test_recorded_numbers_are_upstreams(upstream, name):
    assert_equal(upstream[name], RECORDED[name])
