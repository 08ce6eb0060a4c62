"""Which rate R, W and b want, each by itself, at several widths and ranks.

    python examples/benchmarks/rates_by_size.py --markdown docs/learning.md

A LoReFT intervention learns what another one does to random hidden states, N(0, 1), from which it
differs in one role only. Adam without weight decay, 200 steps of 128 states, a rate that falls
linearly to 0. The table has the rate at which the mean loss of a run is lowest, of 15 rates, each
twice the one before, and the powers of the width D and the rank r that it grows by.
"""

from argparse import Namespace

import numpy as np
import torch
from tqdm import tqdm

import harness
import pyreft

WIDTHS, RANKS = [64, 256, 1024], [1, 4, 16]
ROWS = 128
RATES = [2.0**power for power in range(-14, 1)]
ROLES = ["R", "W", "b"]


def pair(role: str, width: int, rank: int, seed: int) -> list[pyreft.LoreftIntervention]:
    """A student and its teacher, whose coefficients are of size 1; they differ in the role."""
    torch.manual_seed(seed)
    student, teacher = (pyreft.LoreftIntervention(width, rank) for _ in range(2))
    for module in (student, teacher):
        torch.nn.init.normal_(module.learned_source.bias)
    own = {name for name, of in student.roles().items() if of == role}
    if role == "R":
        # Where R starts is no parameter.
        own.add("rotate_layer.original")
    state = student.state_dict()
    kept = {name: value for name, value in state.items() if name not in own}
    teacher.load_state_dict(teacher.state_dict() | kept)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in own)
    return [student, teacher]


def mean_loss(role: str, size: tuple[int, int], rate: float, seed: int, steps: int) -> float:
    """Over all steps, of the loss at the start."""
    student, teacher = pair(role, *size, seed)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    batches = torch.Generator().manual_seed(seed)

    losses = []
    for _ in range(steps):
        hidden = torch.randn(ROWS, size[0], generator=batches)
        with torch.no_grad():
            target = teacher(hidden)
        loss = (student(hidden) - target).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses)) / losses[0]


def best_rate(role: str, size: tuple[int, int], arguments: Namespace) -> float:
    losses = [
        np.mean([mean_loss(role, size, rate, seed, arguments.steps) for seed in arguments.seeds])
        for rate in RATES
    ]
    return RATES[int(np.nanargmin(losses))]


def exponents(found: dict[tuple[int, int], float]) -> tuple[float, float]:
    """The powers of D and of r by which the best rate grows, by least squares."""
    sizes = np.log2([[width, rank, 2] for width, rank in found])
    powers, *_ = np.linalg.lstsq(sizes, np.log2(list(found.values())), rcond=None)
    return float(powers[0]), float(powers[1])


def parse() -> Namespace:
    seeds = ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]})
    widths = ("--widths", {"type": int, "nargs": "+", "default": WIDTHS})
    steps = ("--steps", {"type": int, "default": 200, "help": "of a run"})
    arguments = harness.parse(__doc__, [], seeds, widths, steps)
    arguments.rounds = len(arguments.seeds)
    return arguments


def main() -> None:
    arguments = parse()
    rows, figures = [], {}
    sizes = [(width, rank) for width in arguments.widths for rank in RANKS]
    progress = tqdm(total=len(ROLES) * len(sizes), unit="size")
    for role in ROLES:
        found = {}
        for size in sizes:
            found[size] = best_rate(role, size, arguments)
            progress.update()
        powers = [f"{power:.2f}" for power in exponents(found)]
        rows.append([role, *(f"{rate:.1e}" for rate in found.values()), *powers])
        figures[role] = {f"{width}, {rank}": rate for (width, rank), rate in found.items()}
    heads = [f"D {width}, r {rank}" for width, rank in sizes]
    table = harness.table(["role", *heads, "power of D", "power of r"], rows)
    harness.publish("rates_by_size", arguments, figures, table)


if __name__ == "__main__":
    main()
