"""The outcomes of all architectures as a page: counts, and the reason for each failure."""

import re
from importlib.metadata import version

from auto_mappings import MAPPINGS, classes
from one_class import Outcome

_HEAD = """# Architectures

Which model classes of transformers {transformers} pyreft edits: those of its auto mappings, each
built tiny with random weights. The page is generated:

    python tests/architectures/run.py                     all classes, half an hour
    python tests/architectures/run.py --update --class HubertForCTC

A class passes if, with interventions on the output of its layers (of encoder and decoder, if it has
both), no positions give exactly the base model; the first and the last token of each row are
edited, and no other; gradients reach every intervention; generation with and without a cache agree;
a saved adapter reloads exactly; and training steps change the loss. Where no tiny model could be
built or run from the defaults of its config, it is not counted. Real weights of Llama, Gemma 3 and
BERT train and reload in `pytest -m weights tests/training/test_real_models.py`.

| mapping | classes | built | pass | share |
|---|---|---|---|---|
"""


def counts(outcomes):
    """(mapping, classes, built, passed) of each mapping."""
    found = []
    for mapping in dict.fromkeys(one.mapping for one in outcomes):
        here = [one for one in outcomes if one.mapping == mapping]
        built = [one for one in here if not one.unbuilt]
        found.append((mapping, len(here), len(built), sum(not one.failed for one in built)))
    return found


def _share(passed, built):
    return f"{100 * passed / built:.0f} %" if built else "-"


def summary(outcomes):
    """For the terminal."""
    return "\n".join(
        f"{mapping}: {passed} of {built} pass ({_share(passed, built)}), {total - built} not built"
        for mapping, total, built, passed in counts(outcomes)
    )


def as_markdown(outcomes):
    """The page."""
    lines = [_HEAD.format(transformers=version("transformers"))]
    lines += [
        f"| {mapping} | {total} | {built} | {passed} | {_share(passed, built)} |\n"
        for mapping, total, built, passed in counts(outcomes)
    ]
    lines.append("\n## Failing\n\n| mapping | class | check | reason |\n|---|---|---|---|\n")
    lines += [
        f"| {one.mapping} | `{one.name}` | {one.failed[0]} | {_plain(one.failed[1])} |\n"
        for one in outcomes
        if one.failed
    ]
    lines.append("\n## Not built\n\n| mapping | class | reason |\n|---|---|---|\n")
    lines += [
        f"| {one.mapping} | `{one.name}` | {_plain(one.unbuilt)} |\n"
        for one in outcomes
        if one.unbuilt
    ]
    return "".join(lines)


def from_markdown(page):
    """The outcomes of all classes, as the page has them; `as_markdown` of them is the page."""
    failing, unbuilt = page.split("## Failing")[1].split("## Not built")
    failed = re.findall(r"^\| (\w+) \| `(\w+)` \| (.*?) \| ``(.*)`` \|$", failing, re.M)
    missing = re.findall(r"^\| (\w+) \| `(\w+)` \| ``(.*)`` \|$", unbuilt, re.M)
    checks = {(mapping, name): {check: why} for mapping, name, check, why in failed}
    reasons = {(mapping, name): why for mapping, name, why in missing}
    return [
        Outcome(mapping, name, reasons.get((mapping, name)), checks.get((mapping, name), {}))
        for mapping in MAPPINGS
        for name in classes(mapping)
    ]


def _plain(reason):
    """The reason in one cell: nothing in it is markup."""
    short = reason if len(reason) < 220 else f"{reason[:217]}..."
    return "``" + short.replace("|", "/").replace("`", "'") + "``"
