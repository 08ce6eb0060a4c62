"""How long generation takes with interventions, and without: rank, layers, positions.

    python examples/overhead.py
    python examples/overhead.py --tokens 64 --rounds 9

One prompt is continued by the base model and by the same model with an adapter, in turn. The script
prints the median of the ratios of neighbouring runs, and draws them. Interventions of the prompt
run once, in the prefill; those of generated tokens run in each step.
`examples/benchmarks/generation.py` measures batches.
"""

import argparse
import statistics
import time
from pathlib import Path

import pyreft
from quickstart import load, prompt

QUESTION = "Tell me a story about a lighthouse keeper and his cat."


def settings(depth: int) -> dict[str, pyreft.ReftConfig]:
    """Configs by what is shown of them: one choice differs in each group."""
    middle, every = depth // 2, list(range(depth))
    of_rank = {f"rank {r}": {"layers": [middle], "positions": "l1", "rank": r} for r in (1, 8, 32)}
    of_layers = {
        f"{n} layers": {"layers": every[:: depth // n][:n], "positions": "l1", "rank": 4}
        for n in (2, depth // 2, depth)
    }
    of_positions = {
        f"{spec}, all layers": {"positions": spec, "rank": 4, "layers": every}
        for spec in ("f7+l7", "prompt", "all")
    }
    return {
        name: pyreft.ReftConfig(**config)
        for name, config in (of_rank | of_layers | of_positions).items()
    }


def draw(ratios: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, measured in enumerate(ratios.values()):
        axes.scatter(measured, [index] * len(measured), color="#9ecae1", s=18)
        axes.scatter(statistics.median(measured), index, color="#08519c", marker="|", s=180)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set(xlabel="time of generation, base model = 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--tokens", type=int, default=32, help="to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/overhead"))
    arguments = parser.parse_args()

    base, tokenizer = load(arguments.model)
    batch = tokenizer(prompt(tokenizer, QUESTION), return_tensors="pt").to(base.device)
    count = arguments.tokens

    # On a CPU other processes do not count.
    clock = time.process_time if base.device.type == "cpu" else time.perf_counter

    def seconds(model) -> float:
        start = clock()
        model.generate(**batch, min_new_tokens=count, max_new_tokens=count, do_sample=False)
        return clock() - start

    seconds(base)  # the first call of all is slower
    ratios: dict[str, list[float]] = {}
    for name, config in settings(base.config.num_hidden_layers).items():
        measured = []
        for _ in range(arguments.rounds):
            bare = seconds(base)
            model = pyreft.get_reft_model(base, config).eval()
            measured.append(seconds(model) / bare)
            model.unwrap()
        ratios[name] = measured
        print(f"{name:<20} {statistics.median(measured):.3f} of the base model's time")
    draw(ratios, arguments.out / "overhead.png")
    print(f"The picture is {arguments.out / 'overhead.png'}.")


if __name__ == "__main__":
    main()
