"""An adapter for each row of a batch, against one adapter for all rows: ours, and PEFT's LoRA.

    python examples/benchmarks/mixed_adapters.py [--adapters 32 --prompt 96 --tokens 64]

LoReFT edits the last prompt token in the middle layer, rank 4; LoRA has r 8 on q, k, v, up, down
of all layers.
"""

import statistics
from functools import partial

import torch
from peft import LoraConfig, get_peft_model

import harness
import pyreft


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


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--adapters", {"type": int, "default": 32}),
        ("--prompt", {"type": int, "default": 96}),
        ("--tokens", {"type": int, "default": 64}),
        ("--kinds", {"nargs": "+", "default": ["LoReFT", "LoRA"], "choices": ["LoReFT", "LoRA"]}),
    )
    names = [f"a{index}" for index in range(arguments.adapters)]
    make = {"LoReFT": reft, "LoRA": lora}
    models = {kind: make[kind](harness.load(arguments), names) for kind in arguments.kinds}
    vocabulary = models[arguments.kinds[0]].config.vocab_size
    shape = (len(names), arguments.prompt)
    ids = torch.randint(3, vocabulary, shape, device=arguments.device)
    length = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    inputs |= length

    def generate(kind: str, **more) -> None:
        models[kind].generate(**inputs, **more)

    ways = {f"{kind}, one": partial(generate, kind) for kind in models}
    for kind in models:
        ways[f"{kind}, mixed"] = partial(generate, kind, adapter_names=names)
    found = harness.in_turn(ways, arguments.rounds, arguments.device)
    rows = []
    for kind in models:
        one, mixed = f"{kind}, one", f"{kind}, mixed"
        medians = [f"{statistics.median(found[way]):.3f} s" for way in (one, mixed)]
        rows.append([kind, *medians, f"{harness.ratio(found, mixed, one):.2f}x"])
    head = ["method", "one adapter", f"{len(names)} adapters in {len(names)} rows", "ratio"]
    harness.publish("mixed_adapters", arguments, found, harness.table(head, rows))


if __name__ == "__main__":
    main()
