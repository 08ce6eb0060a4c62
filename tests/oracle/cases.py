"""Random cases: what is edited, in which batch, and what is done. A case is drawn from its seed."""

import dataclasses
import random
from typing import Any

from adapter_cases import (
    BASE,
    LATE_SPECS,
    NAMES,
    SPECS,
    draw_intervention,
    draw_lora,
    draw_place,
    draw_several,
    interventions,
)
from bases import CAUSAL, ENCODER_DECODER, LAYERS, LINEAR
from generation_cases import draw_generation
from position_rules import AFTER_LARGE

TASKS = {
    "forward": 24,
    "gradients": 18,
    "generate": 36,
    "shared": 10,
    "cached": 4,
    "merge": 4,
    "export": 2,
    "combine": 4,
}


HISTORY = ["warm", "switched", "saved"]


@dataclasses.dataclass(frozen=True)
class Case:
    """All of one comparison; `repr` reproduces it.

    Args:
        seed: Of all numbers: parameters, token ids, samples.
        task: What is done, one of TASKS.
        architecture, weights, lora: The base model, the seed of its weights, and the modules that
            PEFT's LoRA lies on.
        adapters: The arguments of a `ReftConfig` for each adapter, in the order of NAMES.
        active: (name, weight) of the active ones.
        names: The name of the adapter of each row, if they differ.
        prompts, completions: The number of tokens of each row.
        beginning: How many tokens all prompts begin with alike.
        padding, extra: The side, and how many columns pad every row.
        ends: What tells where prompts end: "labels", "completion_mask" or None.
        options: Of `forward` (how the batch is given), or of `generate`.
        history: What happened to the model before: "warm" (it ran with other parameters),
            "switched" (adapters came and went), "saved" (it was loaded from a file).
        then: How it goes on from the cache that is returned: "forward", "generate" or None.
        locations, subspaces: Explicit positions and directions, for one adapter.
    """

    seed: int
    task: str
    architecture: str
    adapters: tuple[dict[str, Any], ...]
    prompts: tuple[int, ...]
    completions: tuple[int, ...]
    weights: int = 0
    lora: tuple[str, ...] = ()
    active: tuple[tuple[str, float], ...] = (("default", 1.0),)
    names: tuple[str, ...] | None = None
    beginning: int = 0
    padding: str = "right"
    extra: int = 0
    ends: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: tuple[str, ...] = ()
    then: str | None = None
    locations: Any = None
    subspaces: Any = None

    @property
    def two_stacks(self):
        return self.architecture in ENCODER_DECODER

    @property
    def generates(self):
        return self.task in ("generate", "shared")

    def edits(self, row):
        """(name, weight) of the adapters that edit a row."""
        if self.names is None:
            return list(self.active)
        return [(self.names[row], 1.0)] if self.names[row] != BASE else []


def draw(seed):
    """The case of a seed."""
    rng = random.Random(seed)
    task = rng.choices(list(TASKS), list(TASKS.values()))[0]
    case = dataclasses.replace(_DRAW[task](rng, task), seed=seed, weights=rng.randrange(3))
    history = [one for one in HISTORY if rng.random() < 0.12]
    if case.lora and "saved" in history:
        # PEFT's LoRA is not of an adapter's file where several share it.
        history.remove("saved")
    return dataclasses.replace(case, history=tuple(history))


def _lengths(rng, rows, low, high):
    if rng.random() < 0.25:
        return (rng.randint(low, high),) * rows
    return tuple(rng.randint(low, high) for _ in range(rows))


def _forward(rng, task):
    architecture = rng.choice([*CAUSAL, *CAUSAL, "bert", *ENCODER_DECODER, *ENCODER_DECODER])
    rows, causal = rng.choice([1, 2, 2, 3, 4]), architecture in CAUSAL
    ends = rng.choice(["labels", "labels", "completion_mask", None])
    if architecture == "bert":
        ends = rng.choice(["labels", None])
    shortest = 0 if causal and ends and rng.random() < 0.05 else 1
    prompts, short = _lengths(rng, rows, shortest, 18), rng.random() < 0.3
    prompts = tuple(rng.randint(shortest, 6) for _ in prompts) if short else prompts
    completions = _lengths(rng, rows, 1, 7)
    if architecture == "bert" or (causal and ends is None):
        completions = (0,) * rows
    options, adapters = {}, draw_several(rng, rows, architecture)
    if causal and AFTER_LARGE not in str(adapters) and rng.random() < 0.15:
        options["embeddings"] = True
    if causal and ends == "labels" and min(completions) > 1 and rng.random() < 0.2:
        options["unlabelled_end"] = True
    if architecture in ENCODER_DECODER and ends == "labels" and rng.random() < 0.3:
        options["unlabelled_start"] = True
    if task == "forward" and rng.random() < 0.15:
        options["output_hidden_states"] = True
    if task == "gradients" and rng.random() < 0.2:
        options["checkpointing"] = True
    # BART counts positions from the first column, BERT classifies what is there, and a loss has
    # padding before the first token predict that token, if it has a label.
    to_either_side = architecture not in ("bart", "bert") and min(prompts) > 0
    case = Case(
        seed=0,
        task=task,
        architecture=architecture,
        **adapters,
        prompts=prompts,
        completions=completions,
        lora=draw_lora(rng, architecture),
        padding=rng.choice(["left", "right"]) if to_either_side else "right",
        extra=rng.choice([0, 0, 0, 2]),
        ends=ends,
        options=options,
    )
    return _with_explicit(rng, case)


def _with_explicit(rng, case):
    """Sometimes explicit positions, or directions of the subspaces."""
    one = case.names is None and len(case.adapters) == 1 and not case.two_stacks
    count, rows = len(interventions(case)[0]) if one else 0, range(len(case.prompts))
    if not one or min(case.prompts) < 2:
        return case
    if rng.random() < 0.06:
        lengths = [rng.sample(range(-n, n), rng.randint(1, 2)) for n in case.prompts]
        padded = [(*one, -100)[:2] for one in lengths]
        return dataclasses.replace(case, locations=tuple((padded[row],) for row in rows))
    if rng.random() < 0.06:
        ranks = [one["rank"] for one in interventions(case)[0]]
        subspaces = [
            [rng.sample(range(rank), rng.randint(0, rank)) for _ in rows] for rank in ranks
        ]
        return dataclasses.replace(case, subspaces=tuple(subspaces[:count]))
    return case


def _generate(rng, task):
    architecture = rng.choice(CAUSAL if rng.random() < 0.8 else ENCODER_DECODER)
    shared = task == "shared"
    if shared:
        architecture = rng.choice(["llama", "gpt2", "qwen3", "gpt_neox", "opt"])
    rows = rng.randint(2, 4) if shared else rng.choice([1, 2, 2, 3])
    prompts, beginning = _lengths(rng, rows, 1, 14), 0
    if shared:
        beginning = rng.choice([33, 36, 40])
        prompts = tuple(beginning + rng.randint(1, 9) for _ in prompts)
        if rng.random() < 0.1:
            # All prompts are the same text.
            prompts = (beginning,) * rows
    options, then = draw_generation(rng, architecture, prompts, shared)
    if options.pop("alone", False):
        rows, prompts = 1, prompts[:1]
    late = LATE_SPECS if rng.random() < 0.85 else SPECS
    adapters = draw_several(rng, rows, architecture, specs=late if shared else SPECS)
    if AFTER_LARGE in str(adapters):
        options.pop("embeddings", None)
    case = Case(
        seed=0,
        task=task,
        architecture=architecture,
        **adapters,
        prompts=prompts,
        completions=(0,) * rows,
        beginning=beginning,
        lora=draw_lora(rng, architecture),
        padding="right" if architecture in ENCODER_DECODER else "left",
        extra=rng.choice([0, 0, 0, 2]),
        options=options,
        then=then,
    )
    return case if then or "embeddings" in options else _with_explicit(rng, case)


def _cached(rng, task):
    """A forward pass that goes on from the cache of another."""
    rows = rng.choice([1, 2, 3])
    architecture = rng.choice(CAUSAL)
    return Case(
        seed=0,
        task=task,
        architecture=architecture,
        **draw_several(rng, rows, architecture),
        prompts=_lengths(rng, rows, 1, 14),
        completions=(rng.randint(1, 6),) * rows,
        lora=draw_lora(rng, architecture),
        padding="left",
        then=rng.choice(["forward", "generate"]),
    )


def _merge(rng, task):
    """What a linear map can take up: no activation, on every token."""
    architecture = rng.choice(list(LINEAR))
    count = rng.choice([1, 1, 2])
    adapters = []
    for _ in range(count):
        name = rng.choice(LINEAR[architecture])
        config = {"positions": "all", **draw_intervention(rng, linear=True)}
        if name.endswith("_output"):
            config |= {"component": name, "layers": rng.choice(["all", [0], [1, 2]])}
        else:
            layers = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
            layers |= {"bert": "bert.encoder.layer"}
            path = f"{layers.get(architecture, 'model.layers')}[{rng.randrange(LAYERS)}].{name}"
            config["component"] = f"{path}.output"
        adapters.append(config)
    active = (("default", 1.0), ("other", rng.choice([1.0, -0.5])))[:count]
    rows = rng.choice([1, 2, 3])
    return Case(
        seed=0,
        task=task,
        architecture=architecture,
        adapters=tuple(adapters),
        active=active,
        prompts=_lengths(rng, rows, 1, 10),
        completions=(0,) * rows,
    )


def _combine(rng, task):
    """Adapters whose weighted sum is one adapter, if they have the same positions or places."""
    architecture = rng.choice([*CAUSAL, "bert"])
    component, heads = draw_place(rng, architecture)
    adapters = []
    for index in range(2):
        kinds = ["direft", "nodireft", "lobireft"]
        config = {"component": component, **draw_intervention(rng, kinds, linear=True)}
        config["positions"] = rng.choice(["f2", "f7", "f1"] if index == 0 else ["l1", "l2", "l7"])
        config["layers"] = rng.choice(["all", [0], [1]])
        adapters.append(config | ({"heads": heads} if heads else {}))
    if rng.random() < 0.6:
        same = rng.choice(["f7", "l7", "f2+l1", "f7+l7", "all", "prompt", (0, -1)])
        adapters = [config | {"positions": same} for config in adapters]
    rows = rng.choice([1, 2, 3])
    return Case(
        seed=0,
        task=task,
        architecture=architecture,
        adapters=tuple(adapters),
        active=tuple((name, rng.choice([1.0, 0.5, -1.0])) for name in NAMES[:2]),
        prompts=_lengths(rng, rows, 1, 16),
        completions=(0,) * rows,
        padding="right" if architecture == "bert" else rng.choice(["left", "right"]),
    )


_DRAW = {"forward": _forward, "gradients": _forward, "generate": _generate, "shared": _generate}
_DRAW |= {"cached": _cached, "merge": _merge, "export": _merge, "combine": _combine}
