"""What an adapter adds to generation, whose decoding steps are the base model's.

    python examples/benchmarks/generation.py [--batch 8 --prompt 96 --tokens 64]

Prompts are random and differ from their first token on, so that there is nothing to share.
"""

import statistics

import torch

import harness
import pyreft


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--batch", {"type": int, "default": 8}),
        ("--prompt", {"type": int, "default": 96}),
        ("--tokens", {"type": int, "default": 64}),
    )
    base = harness.load(arguments)
    shape = (arguments.batch, arguments.prompt)
    ids = torch.randint(3, base.config.vocab_size, shape, device=arguments.device)
    ids[:, 0] = torch.arange(3, 3 + arguments.batch)
    inputs = harness.greedy(ids, arguments.tokens)
    figures, rows = {}, []
    middle = base.config.num_hidden_layers // 2
    for name, config in {
        "l1, one layer": pyreft.ReftConfig(layers=[middle], positions="l1", rank=4),
        "f7+l7, all layers": pyreft.ReftConfig(positions="f7+l7", rank=8),
    }.items():

        def edited(config=config) -> float:
            # The same object in both, so that they differ by the adapter alone.
            model = pyreft.get_reft_model(base, config)
            seconds = harness.seconds(lambda: model.generate(**inputs), arguments.device)
            model.unwrap()
            return seconds

        ways = {
            "bare": lambda: harness.seconds(lambda: base.generate(**inputs), arguments.device),
            "adapter": edited,
        }
        found = harness.in_turn(ways, arguments.rounds)
        figures[name] = found
        times = harness.ratio(found, "adapter", "bare")
        medians = [f"{statistics.median(found[way]):.3f} s" for way in ways]
        rows.append([name, *medians, f"{times:.3f}x"])
    head = ["adapter", "bare base model", "with the adapter", "ratio"]
    harness.publish("generation", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
