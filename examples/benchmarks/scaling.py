"""How a training step grows: with prompt, completion, layers, positions, batch, model size.

    python examples/benchmarks/scaling.py [--axes prompt batch] [--methods pyreft upstream]

One axis at a time, the others as in `l1` of step_time.py. Steps are those of a second epoch. The
table has a line for each point, and scaling.png, beside the JSON or the document that gets the
table, a picture for each axis.
"""

import statistics
from pathlib import Path

import harness
from step_time import complete

# Hidden size and layers of models of random weights.
SIZES = {"20M": (256, 8), "80M": (576, 12), "250M": (1024, 20)}


def llama(hidden: int, layers: int) -> dict:
    """The fields of a LlamaConfig, of the proportions of SmolLM2."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }


def points(axis: str, depth: int) -> dict[str, dict]:
    """What changes at each point of an axis: its label -> fields of the setting."""
    middle = depth // 2
    if axis == "layers":
        counts = sorted({1, (depth - middle) // 2 or 1, depth - middle})
        return {str(n): {"layers": list(range(middle, middle + n))} for n in counts}
    if axis == "first layer":
        return {str(n): {"layers": [n]} for n in sorted({0, middle, depth - 1})}
    if axis == "positions":
        return {str(n): {"positions": (0, n)} for n in (1, 4, 16)}
    if axis == "model":
        return {
            name: {"model": llama(*size), "layers": [size[1] // 2]} for name, size in SIZES.items()
        }
    values = {"prompt": (32, 128, 512), "completion": (8, 32, 128), "batch": (1, 4, 16)}[axis]
    return {str(value): {axis: value} for value in values}


AXES = ["prompt", "completion", "layers", "first layer", "positions", "batch", "model"]


def draw(figures: dict, methods: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(len(figures) + 1, 4)
    lines = -(-(len(figures) + 1) // columns)
    figure, plots = plt.subplots(
        lines, columns, figsize=(3 * columns, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for plot, (axis, found) in zip(plots.flat, figures.items(), strict=False):
        for method in methods:
            medians = [statistics.median(seconds[method]) for seconds in found.values()]
            plot.plot(list(found), medians, marker="o", label=method)
        plot.set(xlabel=axis, ylabel="seconds a step", ylim=(0, None))
        plot.grid(alpha=0.3)
    # One place more than there are axes is for what they have in common.
    for plot in plots.flat[len(figures) :]:
        plot.axis("off")
    plots.flat[-1].legend(*plots.flat[0].get_legend_handles_labels(), loc="center")
    figure.savefig(path, dpi=80)


def main() -> None:
    arguments = harness.parse(
        __doc__,
        ["pyreft", "pyreft, no reuse"],
        ("--axes", {"nargs": "+", "default": AXES, "choices": AXES}),
        ("--dtype", {"default": "float32", "choices": ["float32", "bfloat16"]}),
    )
    depth = harness.depth_of(arguments.model)
    setting = complete("l1", depth, 1, arguments.dtype)
    figures: dict[str, dict] = {}
    rows = []
    for axis in arguments.axes:
        figures[axis] = {}
        for label, change in points(axis, depth).items():
            found = harness.measure_later(setting | change, arguments)
            figures[axis][label] = found
            medians = [f"{statistics.median(found[m]):.3f} s" for m in arguments.methods]
            rows.append([axis, label, *medians])
    head = ["axis", "at", *arguments.methods]
    harness.publish("scaling", arguments, figures, harness.table(head, rows))
    beside = arguments.markdown.parent if arguments.markdown else arguments.out
    draw(figures, arguments.methods, beside / "scaling.png")


if __name__ == "__main__":
    main()
