"""pyreft equals an implementation of its own in the tests, in random cases, new ones at each run.

What is drawn is said in `cases`; `PYREFT_ORACLE_SEED=...` runs the cases of a seed again.
"""

import os

import pytest
from outcomes import DIFFERS, run_seed, summary

SEED = int(os.environ["PYREFT_ORACLE_SEED"])
CASES, PARTS, LONG_PARTS = 240, 12, 40
MANY = int(os.environ.get("PYREFT_ORACLE_CASES", 10000))

# PEFT uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")


def require_same(first, count):
    results = [run_seed(seed) for seed in range(first, first + count)]
    differ = [result for result in results if result.outcome == DIFFERS]
    if differ:
        text = f"PYREFT_ORACLE_SEED={differ[0].seed} and others:\n{summary(results)}"
        pytest.fail(text, pytrace=False)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_cases(part):
    require_same(SEED + part * (CASES // PARTS), CASES // PARTS)


@pytest.mark.oracle
@pytest.mark.parametrize("part", range(LONG_PARTS))
def test_thousands_of_random_cases(part):
    count = -(-MANY // LONG_PARTS)
    require_same(SEED + part * count, count)
