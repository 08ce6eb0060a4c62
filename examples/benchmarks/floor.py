"""The least time a step can take on this machine, and how far a step is from it.

    python examples/benchmarks/floor.py

Counted is what depends on the edit: in the layers above the first edited one, the tokens from the
first edited position to the one that predicts the last label, forward and the gradient of the
hidden states; and the logits of labelled tokens. Each matrix product is timed at its own shape;
attention counts as the products in it, of the pairs of tokens that are not masked. Norms,
activations, rotations, the softmax and the optimizer are left out: the floor is one of products.
"""

import statistics
from functools import cache

import torch
from transformers import AutoConfig

import harness
from step_time import SETTINGS, complete


@cache
def product_seconds(shape: tuple[int, int, int, int], device: str) -> float:
    """Seconds of one product of (b, n, k) and (b, k, m), the best of several."""
    b, n, k, m = shape
    one, other = torch.randn(b, n, k, device=device), torch.randn(b, k, m, device=device)
    return min(harness.seconds(lambda: one @ other, device) for _ in range(5))


def tokens_of(setting: dict) -> tuple[int, int]:
    """How many tokens of a row run, and how many they see; the last one predicts nothing."""
    first, last = setting["positions"]
    length = setting["prompt"] + setting["completion"] - 1
    return (length if first else setting["completion"] + last - 1), length


def products(setting: dict, config) -> list[tuple[int, tuple[int, int, int, int]]]:
    """How often each product is made in a step: (times, (b, n, k, m))."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    keys = config.num_key_value_heads * head
    queries = config.num_attention_heads * head
    run, length = tokens_of(setting)
    tokens = setting["batch"] * run
    above = config.num_hidden_layers - 1 - min(setting["layers"])
    maps = [(width, queries), (width, keys), (width, keys), (queries, width)]
    maps += [(width, inner), (width, inner), (inner, width)]
    found = []
    for one, other in maps:
        found += [(above, (1, tokens, one, other)), (above, (1, tokens, other, one))]
    # Scores and sums of values forward; of these, four gradients.
    heads = setting["batch"] * config.num_attention_heads
    found += [(3 * above, (heads, run, head, length)), (3 * above, (heads, run, length, head))]
    labelled = setting["batch"] * setting["completion"]
    vocabulary = config.vocab_size
    return [*found, (1, (1, labelled, width, vocabulary)), (1, (1, labelled, vocabulary, width))]


def attended(setting: dict) -> float:
    """The share of the pairs of run tokens and all tokens that is not masked."""
    run, length = tokens_of(setting)
    return 1 - (run - 1) / (2 * length)


def floor(setting: dict, config, device: str) -> dict[str, float]:
    """Seconds, operations and their rate."""
    seconds = operations = 0.0
    for times, shape in products(setting, config):
        share = attended(setting) if shape[0] > 1 else 1.0
        seconds += times * share * product_seconds(shape, device)
        operations += times * share * 2 * shape[0] * shape[1] * shape[2] * shape[3]
    return {"seconds": seconds, "operations": operations, "rate": operations / seconds}


def main() -> None:
    arguments = harness.parse(
        __doc__,
        ["pyreft", "pyreft, no reuse", "bare"],
        ("--settings", {"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS)}),
    )
    config = AutoConfig.from_pretrained(arguments.model)
    figures, rows = {}, []
    for name in arguments.settings:
        setting = complete(name, config.num_hidden_layers, 1, "float32")
        least = floor(setting, config, arguments.device)
        found = harness.measure_later(setting, arguments)
        figures[name] = {"floor": least, "measured": found}
        medians = [statistics.median(found[method]) for method in arguments.methods]
        rows.append(
            [name, f"{least['operations'] / 1e9:.0f}", f"{least['rate'] / 1e9:.0f}"]
            + [f"{least['seconds']:.3f} s"]
            + [f"{m:.3f} s, {m / least['seconds']:.2f}x" for m in medians]
        )
    head = ["setting", "GFLOP", "GFLOP/s", "floor", *arguments.methods]
    harness.publish("floor", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
