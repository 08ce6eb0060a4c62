"""Compare pyreft with the reference in many random cases.

    python tests/oracle/run.py --cases 10000 --seed 0 --processes 2

A case is drawn from its seed alone: `--seed 17 --cases 1` runs the case of seed 17 again.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
import warnings

from outcomes import DIFFERS, one_thread, run_seed, summary
from tqdm import tqdm


def run(seeds, processes=1):
    """The results of the cases of some seeds, with a progress bar."""
    seeds = list(seeds)
    results, differ = [], 0
    with tqdm(total=len(seeds), unit="case", smoothing=0) as bar:
        for result in _results(seeds, processes):
            results.append(result)
            if result.outcome == DIFFERS:
                differ += 1
                bar.write(f"differs: {result}")
            bar.set_postfix(differ=differ)
            bar.update()
    return results


def _results(seeds, processes):
    if processes == 1:
        one_thread()
        yield from map(run_seed, seeds)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, spawn, _begin) as pool:
        yield from pool.map(run_seed, seeds, chunksize=20)


def _begin():
    one_thread()
    warnings.simplefilter("ignore")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shown", type=int, default=10, help="how many that differ are printed")
    arguments = parser.parse_args()
    # What transformers says of itself is not what is compared here; the tests fail on warnings.
    warnings.simplefilter("ignore")
    results = run(range(arguments.seed, arguments.seed + arguments.cases), arguments.processes)
    print(summary(results, arguments.shown))
    sys.exit(any(result.outcome == DIFFERS for result in results))


if __name__ == "__main__":
    main()
