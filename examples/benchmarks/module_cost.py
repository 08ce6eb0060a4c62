"""What one intervention costs: forward and backward of every kind, beside NodiReFT's.

    python examples/benchmarks/module_cost.py [--width 2048 --rank 8 --tokens 112 --threads 1]

The kinds are timed in turn, round by round, so that a noisy machine disturbs all alike; a ratio
is the median over the rounds of kind / nodireft.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from pyreft.interventions import intervention_class

KINDS = ["nodireft", "noreft", "loreft", "direft", "consreft", "lobireft"]


def seconds(intervention: torch.nn.Module, hidden: torch.Tensor) -> float:
    """Time one forward and backward, gradients of the hidden state included."""
    intervention.zero_grad()
    hidden.grad = None
    start = time.perf_counter()
    intervention(hidden).sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=112, help="8 rows of f7+l7 by default")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    sizes = {"embed_dim": arguments.width, "low_rank_dimension": arguments.rank}
    modules = {kind: intervention_class(kind)(**sizes) for kind in KINDS}
    hidden = torch.randn(1, arguments.tokens, arguments.width, requires_grad=True)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds + 5):
        for kind, module in modules.items():
            times[kind].append(seconds(module, hidden))
    figures = {}
    print(f"{'kind':<10} {'ms':>8} {'x nodireft':>11}")
    for kind in KINDS:
        pairs = zip(times[kind][5:], times["nodireft"][5:], strict=True)
        milliseconds = 1000 * statistics.median(times[kind][5:])
        ratio = statistics.median(one / other for one, other in pairs)
        figures[kind] = {"ms": milliseconds, "ratio": ratio}
        print(f"{kind:<10} {milliseconds:>8.3f} {ratio:>11.2f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(vars(arguments) | figures, indent=2, default=str))


if __name__ == "__main__":
    main()
