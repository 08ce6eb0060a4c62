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
SAME, REFUSED, DIFFERS, BARE = "same", "refused", "differs", "bare"


class Result(NamedTuple):
    """What came of a case.

    Args:
        seed: Of the case; the others are drawn from it.
        case: The case.
        outcome: SAME, REFUSED (as it must be), DIFFERS, or BARE: the bare model differs as well.
        reason: Of all but SAME.
    """

    seed: int
    case: Any
    outcome: str
    reason: str = ""

    def __str__(self):
        return f"seed {self.seed}, {self.outcome}: {self.reason}\n    {self.case}"


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
    # Whatever is raised is a difference, and other cases are still to be run.
    except Exception as error:
        if must_refuse and isinstance(error, ValueError):
            return REFUSED, must_refuse
        return BARE if _bare_differs(case) else DIFFERS, _describe(error)
    return SAME, ""


def _bare_differs(case):
    """Whether transformers by itself does in this case what differs from each row by itself."""
    if case.task not in ("generate", "shared", "cached"):
        return False
    try:
        pair = Pair(case)
    except Exception:
        return False
    pair.bare = True
    try:
        with pair.model.disable_adapter():
            CHECKS[case.task](pair)
    except Exception:
        return True
    return False


def _describe(error):
    if isinstance(error, DifferenceError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(where.filename).name}:{where.lineno}"
    return f"{type(error).__name__} at {at}: {str(error)[:300]}"


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
    outcomes = (SAME, REFUSED, BARE, DIFFERS)
    lines = ["".join(f"{outcome:>9}" for outcome in outcomes) + "   (bare: in transformers too)"]
    for name in sorted(counts):
        numbers = "".join(f"{counts[name][outcome]:9}" for outcome in outcomes)
        lines.append(f"{numbers}   {name}")
    differ = [result for result in results if result.outcome == DIFFERS]
    differ += [result for result in results if result.outcome == BARE][:2]
    return "\n".join([*lines, *map(str, differ[:shown])])


def one_thread():
    """For processes that share a machine."""
    torch.set_num_threads(1)
