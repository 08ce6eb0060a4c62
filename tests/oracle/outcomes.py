"""Cases run, and what came of them."""

import collections
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bases import in_double
from cases import draw
from comparing import DifferenceError
from forward_checks import (
    check_combine,
    check_export,
    check_forward,
    check_gradients,
    check_merge,
)
from generation_checks import check_cached, check_generation
from position_rules import RefusedError
from subject import Pair, refuse_config

CHECKS = {
    "forward": check_forward,
    "gradients": check_gradients,
    "generate": check_generation,
    "shared": check_generation,
    "cached": check_cached,
    "merge": check_merge,
    "export": check_export,
    "combine": check_combine,
}
SAME, REFUSED, DIFFERS = "same", "refused", "differs"


class Result(NamedTuple):
    """What came of a case.

    Args:
        seed: Of the case; the others are drawn from it.
        case: The case.
        outcome: SAME, REFUSED (as it must be) or DIFFERS.
        reason: Of the latter two.
    """

    seed: int
    case: Any
    outcome: str
    reason: str = ""

    def __str__(self):
        return f"seed {self.seed}: {self.reason}\n    {self.case}"


def run_seed(seed):
    """Draw a case and compare it."""
    case = draw(seed)
    with in_double():
        return Result(seed, case, *_run(case))


def _run(case):
    """(outcome, reason)."""
    must_refuse = None
    try:
        refuse_config(case)
    except RefusedError as refused:
        must_refuse = str(refused)
    try:
        pair = Pair(case)
        if must_refuse:
            return DIFFERS, f"the config is not refused: {must_refuse}"
        CHECKS[case.task](pair)
    except RefusedError as refused:
        return REFUSED, str(refused)
    except DifferenceError as difference:
        return DIFFERS, str(difference)
    # Whatever is raised is a difference, and other cases are still to be run.
    except Exception as error:
        if must_refuse and isinstance(error, ValueError):
            return REFUSED, must_refuse
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return DIFFERS, f"{type(error).__name__} at {at}: {str(error)[:300]}"
    return SAME, ""


def category(result):
    """What a case is counted as: what is done, and how it generates."""
    way = result.case.options.get("way")
    return result.case.task if way is None else f"{result.case.task}, {way}"


def summary(results, shown=10):
    """Lines for people: the cases of each category, and the first that differ."""
    counts = collections.defaultdict(collections.Counter)
    for result in results:
        counts[category(result)][result.outcome] += 1
        counts["all"][result.outcome] += 1
        counts[f"on {result.case.architecture}"][result.outcome] += 1
    lines = [f"{'':22}{SAME:>9}{REFUSED:>9}{DIFFERS:>9}"]
    for name in sorted(counts):
        one = counts[name]
        lines.append(f"{name:22}{one[SAME]:9}{one[REFUSED]:9}{one[DIFFERS]:9}")
    differ = [result for result in results if result.outcome == DIFFERS]
    return "\n".join([*lines, *map(str, differ[:shown])])


def one_thread():
    """For processes that share a machine."""
    torch.set_num_threads(1)
