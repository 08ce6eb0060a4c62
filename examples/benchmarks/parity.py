"""Does R learn as upstream's does? Losses of LoReFT beside the same under torch's `orthogonal`.

    python examples/benchmarks/parity.py                                   # a regression
    python examples/benchmarks/parity.py --settings demonstrations classification --data data

Both begin with one R, W and b, take coordinates in one basis, and see the same data. For each
tenth of a run the table has the mean loss over seeds, ours over theirs. The regression is to an
edit inside another subspace, 5,000 steps in float64, by three optimizers; the other settings are
those of learning_tasks.py, trained by `ReftTrainer` with AdamW.

Under weight decay torch's parametrization makes R zero at the first step, since it keeps signs in
what decays. Here they are put back after every step.
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import harness
import learning
import learning_tasks as tasks
import pyreft
from householder import parametrized

WIDTH, RANK, ROWS = 64, 4, 256
Made = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Made] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
    "AdamW, decay 0.01": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=5e-2),
}


def regress(seed: int, make: Made, steps: int) -> tuple[list[list[float]], float]:
    """Losses of ours and of theirs, and the largest |R R^T - I| of ours at the end."""
    torch.manual_seed(seed)
    teacher, ours = (pyreft.LoreftIntervention(WIDTH, RANK, dtype=torch.float64) for _ in range(2))
    theirs = copy.deepcopy(ours)
    theirs.rotate_layer = parametrized(theirs.rotate_layer)
    batches = torch.Generator().manual_seed(seed)
    hidden = torch.randn(steps, ROWS, WIDTH, generator=batches, dtype=torch.float64)
    losses = []
    for module in (ours, theirs):
        optimizer = make(module.parameters())
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        losses.append([])
        for batch in hidden:
            with torch.no_grad():
                target = teacher(batch)
            loss = (module(batch) - target).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if module is theirs:
                signs = theirs.rotate_layer.parametrizations.weight.original
                signs.data.diagonal().fill_(-1.0)
            losses[-1].append(loss.item())
    return losses, tasks.orthonormality_error(ours) or 0.0


def train(name: str, seed: int, arguments: Namespace) -> tuple[list[list[float]], float]:
    """The same of a setting of learning_tasks.py."""
    setting = tasks.SETTINGS[name](arguments)
    wanted = [
        learning.identify(setting, method, seed, arguments.rate, arguments)
        for method in ("paper", "householder")
    ]
    runs = [learning.run(setting, identity, arguments) for identity in wanted]
    return [run["losses"] for run in runs], runs[0]["orthonormality_error"]


def tenths(losses: np.ndarray) -> np.ndarray:
    """(seeds, steps) -> the mean of each tenth of a run, (10,)."""
    return np.array([part.mean() for part in np.array_split(losses, 10, axis=1)])


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--data", {"type": Path, "help": "folder of glue/MRPC and llm-adapters/openbookqa"}),
        ("--settings", {"nargs": "+", "default": ["regression"]}),
        ("--style", {"default": tasks.STYLES[0], "choices": tasks.STYLES}),
        ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]}),
        ("--steps", {"type": int, "help": "of a run; 5,000 of the regression by default"}),
        ("--rate", {"type": float, "default": 4e-3, "help": "of all but the regression"}),
    )
    arguments.ratios, arguments.rounds = None, len(arguments.seeds)
    runs: dict[str, Callable[[int], tuple[list[list[float]], float]]] = {}
    for name in arguments.settings:
        if name == "regression":
            for optimizer, make in OPTIMIZERS.items():
                runs[f"regression, {optimizer}"] = lambda seed, make=make: regress(
                    seed, make, arguments.steps or 5000
                )
        else:
            runs[name] = lambda seed, name=name: train(name, seed, arguments)
    rows, figures = [], {}
    for name, run in runs.items():
        found = [run(seed) for seed in tqdm(arguments.seeds, desc=name, unit="seed")]
        losses = np.array([one for one, _ in found])  # (seeds, 2, steps)
        ours, theirs = tenths(losses[:, 0]), tenths(losses[:, 1])
        ratios = ours / theirs
        error = max(error for _, error in found)
        figures[name] = {"ours": ours.tolist(), "theirs": theirs.tolist(), "error": error}
        last = f"{ours[-1]:.3g}, {theirs[-1]:.3g}"
        rows.append([name, *(f"{r:.3f}" for r in ratios), last, f"{error:.0e}"])
    head = ["setting", *(str(n) for n in range(1, 11)), "last losses", "R R^T - I"]
    harness.publish("parity", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
