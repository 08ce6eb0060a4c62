"""Build every architecture of the installed transformers tiny, and check that pyreft edits it.

python tests/architectures/run.py                              all; writes docs/architectures.md
python tests/architectures/run.py --mapping ctc --class HubertForCTC
python tests/architectures/run.py --update --class HubertForCTC      its rows on the page as well
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch
import transformers
from auto_mappings import MAPPINGS, classes
from one_class import run_class, warm_up
from page import as_markdown, from_markdown, summary
from tqdm import tqdm

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mapping", choices=MAPPINGS, action="append", help="all by default")
    parser.add_argument("--class", dest="names", action="append", help="a model class")
    parser.add_argument("--update", action="store_true", help="write what was run on the page")
    parser.add_argument("--json", type=Path, help="a file to append each outcome to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("pyreft").setLevel(logging.ERROR)
    todo = [
        (mapping, name, config)
        for mapping in arguments.mapping or MAPPINGS
        for name, config in classes(mapping).items()
        if arguments.names is None or name in arguments.names
    ]
    warm_up()
    outcomes = []
    with tqdm(todo, unit="class", smoothing=0, file=sys.stderr) as bar:
        for mapping, name, config in bar:
            outcome = run_class(mapping, name, config)
            outcomes.append(outcome)
            if outcome.failed:
                bar.write(f"{mapping} {name}: {': '.join(outcome.failed)}")
            elif outcome.unbuilt:
                bar.write(f"{mapping} {name}: not built: {outcome.unbuilt}")
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(outcome.to_json() + "\n")
    print(summary(outcomes))
    if not arguments.mapping and not arguments.names:
        PAGE.write_text(as_markdown(outcomes))
    elif arguments.update:
        new = {(one.mapping, one.name): one for one in outcomes}
        known = from_markdown(PAGE.read_text())
        PAGE.write_text(as_markdown([new.get((one.mapping, one.name), one) for one in known]))


if __name__ == "__main__":
    main()
