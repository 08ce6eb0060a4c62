"""Two parts of a step on a CPU against what runs without them, at the shapes of step_time.py.

    python examples/benchmarks/parts.py --rounds 30

attention    of the tokens of a window to all: matrix products, and torch's fused kernel ("sdpa")
loss         of labelled tokens with a frozen head: by tiles, and by all of their logits at once

Sizes are SmolLM2-135M's: 9 heads of width 64 that share 3 keys and values, hidden states of 576
features, 49,152 words. With ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 the matrix
products are those of a processor without AVX-512.
"""

import statistics
from functools import partial
from types import SimpleNamespace

import torch

import harness
from pyreft.installed.attention_functions import sdpa
from pyreft.reuse.attention import attending_here, window_attention
from pyreft.training.chunks import PlainChunkedLoss
from pyreft.training.labelled import CPU_TILE
from step_time import SETTINGS

BATCH, HEADS, GROUPS, WIDTH, FEATURES, WORDS = 8, 9, 3, 64, 576, 49152


def attention_ways(window: int, length: int) -> dict:
    """Forward and backward of both, of (B, H, W, width) queries to T keys and values."""
    torch.manual_seed(0)
    query = torch.randn(BATCH, HEADS, window, WIDTH, requires_grad=True)
    key, value = (torch.randn(BATCH, GROUPS, length, WIDTH, requires_grad=True) for _ in "kv")
    mask = torch.ones(window, length, dtype=torch.bool).tril(length - window)
    mask = mask.expand(BATCH, 1, window, length)
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, training=True, is_causal=True)

    def run(attend) -> None:
        with attending_here():
            attend(module, query, key, value, mask)[0].sum().backward()

    return {"with": partial(run, window_attention), "without": partial(run, sdpa())}


def loss_ways(tokens: int) -> dict:
    """The loss of so many labelled tokens, with the gradient of their hidden states."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, FEATURES, requires_grad=True)
    weight, targets = torch.randn(WORDS, FEATURES) / 24, torch.randint(0, WORDS, (tokens,))

    def tiles() -> None:
        PlainChunkedLoss.apply(weight, True, targets, *CPU_TILE, hidden).backward()

    def at_once() -> None:
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()

    return {"with": tiles, "without": at_once}


def main() -> None:
    arguments = harness.parse(__doc__, [])
    figures, rows = {}, []
    for name, setting in SETTINGS.items():
        completion, length = setting["completion"], setting["prompt"] + setting["completion"] - 1
        parts = {"loss": loss_ways(BATCH * completion)}
        if not setting["positions"][0]:
            parts["attention"] = attention_ways(completion, length)
        for part, ways in parts.items():
            timed = {way: partial(harness.seconds, run, "cpu") for way, run in ways.items()}
            figures[f"{name}, {part}"] = found = harness.in_turn(timed, arguments.rounds)
            medians = [f"{1000 * statistics.median(found[way]):.1f} ms" for way in found]
            rows.append([name, part, *medians, f"{harness.ratio(found, 'without', 'with'):.2f}x"])
    head = ["setting", "part", "with", "without", "without / with"]
    harness.publish("parts", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
