"""What one intervention costs: forward and backward of every kind, beside NodiReFT's.

    python examples/benchmarks/module_cost.py --rounds 200 [--width 2048 --rank 8 --tokens 112]

The kinds are timed in turn, so that a noisy machine disturbs all alike; a ratio is the median over
the rounds of kind / nodireft. 112 tokens are 8 rows of f7+l7.
"""

import statistics
from functools import partial

import torch

import harness
from pyreft.interventions import intervention_class

KINDS = ["nodireft", "noreft", "loreft", "direft", "consreft", "lobireft"]


def seconds(intervention: torch.nn.Module, hidden: torch.Tensor, device: str) -> float:
    """Of one forward and backward, gradients of the hidden state included."""
    intervention.zero_grad()
    hidden.grad = None
    return harness.seconds(lambda: intervention(hidden).sum().backward(), device)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--width", {"type": int, "default": 2048}),
        ("--rank", {"type": int, "default": 8}),
        ("--tokens", {"type": int, "default": 112}),
    )
    torch.manual_seed(0)
    device = arguments.device
    shape = (1, arguments.tokens, arguments.width)
    hidden = torch.randn(shape, device=device, requires_grad=True)
    sizes = {"embed_dim": arguments.width, "low_rank_dimension": arguments.rank}
    modules = {kind: intervention_class(kind)(**sizes).to(device) for kind in KINDS}
    ways = {kind: partial(seconds, module, hidden, device) for kind, module in modules.items()}
    found = harness.in_turn(ways, arguments.rounds)
    rows = []
    for kind in KINDS:
        milliseconds = 1000 * statistics.median(found[kind])
        times = harness.ratio(found, kind, "nodireft")
        rows.append([kind, f"{milliseconds:.2f} ms", f"{times:.2f}x"])
    head = ["kind", "forward and backward", "of nodireft"]
    harness.publish("module_cost", arguments, found, harness.table(head, rows))


if __name__ == "__main__":
    main()
