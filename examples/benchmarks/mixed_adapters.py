"""An adapter for each row of a batch, against one adapter for all rows: ours, and PEFT's LoRA.

    python examples/benchmarks/mixed_adapters.py [--adapters 32 --prompt 96 --tokens 64]

LoReFT edits the last prompt token in the middle layer, rank 4; LoRA has r 8 on q, k, v, up, down
of all layers. Before anything is timed, LoReFT's rows are compared with runs of each by itself.
"""

import statistics
from functools import partial

import torch
from peft import LoraConfig, get_peft_model

import harness
import pyreft

# Tokens of each row that are compared with those of a run of the row by itself.
COMPARED = 8
# How far logits in float64 may be from those; in float32 rounding alone may move them by more.
TOLERANCE = 1e-4


def reft(base, names: list[str]):
    middle = base.config.num_hidden_layers // 2
    config = pyreft.ReftConfig(layers=[middle], positions="l1", rank=4)
    model = pyreft.get_reft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model.eval()


def lora(base, names: list[str]):
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model.eval()


def compare(model, ids: torch.Tensor, names: list[str], dtype: str) -> dict[str, float]:
    """How far a mixed batch is from each row by itself, with its adapter alone.

    Args:
        model: The model, in float32, and so again afterwards, its first adapter active.
        ids: (B, T), prompts without padding.
        names: The adapter of each row.
        dtype: The type to run in.

    Returns:
        The largest difference of logits at tokens that follow the same ones; how many of the
        generated tokens are equal, of how many; and the least that an adapter changes logits.
    """
    model.to(getattr(torch, dtype))
    mixed, mixed_logits = generated(model, ids, adapter_names=names)
    _, bare = generated(model, ids, adapter_names=["__base__"] * len(names))
    apart, equal, edit = 0.0, 0, float("inf")
    for row, name in enumerate(names):
        model.set_adapter(name)
        (alone,), (logits,) = generated(model, ids[row : row + 1])
        same = alone == mixed[row]
        # A tie may be decided otherwise, and what follows it is another text.
        following = 1 + int(same[:-1].cumprod(0).sum())
        differences = (logits - mixed_logits[row])[:following].abs()
        apart, equal = max(apart, differences.max().item()), equal + int(same.sum())
        edit = min(edit, (logits[0] - bare[row, 0]).abs().max().item())
    model.set_adapter(names[0])
    model.float()
    return {"apart": apart, "equal": equal, "of": mixed.numel(), "edit": edit}


def generated(model, ids: torch.Tensor, **more) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that follow, (B, COMPARED), and the logits they are chosen by."""
    wanted = {"output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**harness.greedy(ids, COMPARED), **wanted, **more)
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits, 1)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--adapters", {"type": int, "default": 32}),
        ("--prompt", {"type": int, "default": 96}),
        ("--tokens", {"type": int, "default": 64}),
        ("--kinds", {"nargs": "+", "default": ["LoReFT", "LoRA"], "choices": ["LoReFT", "LoRA"]}),
    )
    torch.manual_seed(0)
    names = [f"a{index}" for index in range(arguments.adapters)]
    make = {"LoReFT": reft, "LoRA": lora}
    models = {kind: make[kind](harness.load(arguments), names) for kind in arguments.kinds}
    vocabulary = models[arguments.kinds[0]].config.vocab_size
    shape = (len(names), arguments.prompt)
    ids = torch.randint(3, vocabulary, shape, device=arguments.device)
    compared = {}
    if "LoReFT" in models:
        for dtype in ("float32", "float64"):
            compared[dtype] = compare(models["LoReFT"], ids, names, dtype)
        if compared["float64"]["apart"] > TOLERANCE:
            raise SystemExit(f"a mixed batch is not what its rows are by themselves: {compared}.")
    inputs = harness.greedy(ids, arguments.tokens)

    def generate(kind: str, **more) -> float:
        return harness.seconds(lambda: models[kind].generate(**inputs, **more), arguments.device)

    ways = {f"{kind}, one": partial(generate, kind) for kind in models}
    for kind in models:
        ways[f"{kind}, mixed"] = partial(generate, kind, adapter_names=names)
    found = harness.in_turn(ways, arguments.rounds)
    figures = {"seconds": found, "rows by themselves": compared}
    text = table_of_times(found, list(models), len(names)) + table_of_rows(compared)
    harness.publish("mixed_adapters", arguments, figures, text)


def table_of_times(found: dict[str, list[float]], kinds: list[str], count: int) -> str:
    rows = []
    for kind in kinds:
        one, mixed = f"{kind}, one", f"{kind}, mixed"
        medians = [f"{statistics.median(found[way]):.3f} s" for way in (one, mixed)]
        rows.append([kind, *medians, f"{harness.ratio(found, mixed, one):.2f}x"])
    head = ["method", "one adapter", f"{count} adapters in {count} rows", "ratio"]
    return harness.table(head, rows)


def table_of_rows(compared: dict[str, dict[str, float]]) -> str:
    if not compared:
        return ""
    head = ["LoReFT, from rows by themselves", "logits", "equal tokens", "edited, from bare"]
    rows = [
        [dtype, f"{one['apart']:.1e}", f"{one['equal']} of {one['of']}", f"{one['edit']:.2f}"]
        for dtype, one in compared.items()
    ]
    return "\n\n" + harness.table(head, rows)


if __name__ == "__main__":
    main()
