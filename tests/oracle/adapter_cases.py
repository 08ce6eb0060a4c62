"""Random adapters: where they edit, at which positions, by which kinds."""

from bases import ENCODER_DECODER, LAYERS, LORA, components
from formulas import ACTIVATIONS, CONSTANT, KINDS
from position_rules import AFTER_LARGE, split

# "__base__" is no adapter.
BASE = "__base__"
NAMES = ["default", "other", "third"]
SPECS = [
    *("f1", "f2", "f7", "l1", "l2", "l7", "f2+l1", "f7+l7", "f1+l6", "prompt", "all", "completion"),
    *(
        (0, -1),
        (-2,),
        (1,),
        "0+-1",
        "f1+-2",
        "l1+0",
        "l2+completion",
        AFTER_LARGE,
        "f2+" + AFTER_LARGE,
    ),
]
# A shared beginning runs once only if nothing in it is edited.
LATE_SPECS = ["l1", "l2", "l7", (-1,), (-3, -1), "completion", "l1+completion", "-2", AFTER_LARGE]


def draw_intervention(rng, kinds=KINDS, linear=False):
    kind = rng.choice(kinds)
    drawn = {"kind": kind, "rank": rng.choice([1, 2, 3, 5])}
    if kind not in CONSTANT and not linear and rng.random() < 0.4:
        drawn["act_fn"] = rng.choice([name for name in ACTIVATIONS if name])
    if rng.random() < 0.3:
        drawn["add_bias"] = True
    return drawn


def draw_place(rng, architecture, stack=None, names=None):
    """(component, heads)."""
    stack = stack or rng.choice(["encoder", "decoder"])
    stack = stack if architecture in ENCODER_DECODER else None
    named = components(architecture, stack)
    component = rng.choice(names or ["block_output"] * 4 + named)
    heads = None
    if component.startswith("head_") and rng.random() < 0.7:
        heads = rng.choice([[0], [1], [0, 1]])
    return ("decoder_" if stack == "decoder" else "") + component, heads


def draw_adapter(rng, architecture, specs=SPECS, kinds=KINDS, linear=False, stack=None):
    """A config: of the short form, or of one to three representations."""
    specs = _fitting(specs, architecture)
    if rng.random() < 0.7:
        component, heads = draw_place(rng, architecture, stack)
        config = {"positions": rng.choice(_of_stack(specs, architecture, component))}
        config |= {"component": component, **draw_intervention(rng, kinds, linear)}
        config["layers"] = rng.choice(["all", [0], [1], [2], [0, 2], [-1]])
        if heads:
            config["heads"] = heads
        if rng.random() < 0.4:
            config["tied"] = False
        return config
    listed = []
    for _ in range(rng.randint(1, 3)):
        component, heads = draw_place(rng, architecture, stack)
        one = {"layer": rng.randrange(LAYERS), "component": component}
        one["positions"] = rng.choice(_of_stack(specs, architecture, component))
        one |= draw_intervention(rng, kinds, linear)
        one["low_rank_dimension"] = one.pop("rank")
        if heads:
            one["heads"] = heads
        same = [o for o in listed if (o["layer"], o["component"]) == (one["layer"], component)]
        if not same:
            listed.append(one)
    return {"representations": listed}


def _fitting(specs, architecture):
    """The specs for an architecture: some have no ids for functions, some no completion."""
    if architecture in ENCODER_DECODER:
        specs = [spec for spec in specs if AFTER_LARGE not in spec]
    if architecture == "bert":
        specs = [spec for spec in specs if spec == "all" or "completion" not in spec]
    return specs


def _of_stack(specs, architecture, component):
    if architecture in ENCODER_DECODER and not component.startswith("decoder_"):
        return [spec for spec in specs if spec == "all" or "completion" not in spec]
    if architecture in ENCODER_DECODER:
        # Most often a decoder's prompt is one token.
        return ["l1", "all", "completion", "l1+completion", "f1+l1", "prompt", (-1,), "f2+l2"]
    return specs


def draw_several(rng, rows, architecture, **how):
    """(adapters, active, names): one active, several with weights, or one for each row."""
    way = rng.choices(["one", "weights", "rows"], [5, 3, 3])[0]
    count = 1 if way == "one" else rng.randint(2, 3)
    adapters = tuple(draw_adapter(rng, architecture, **how) for _ in range(count))
    names = None
    active = (("default", 1.0),)
    if way == "weights":
        active = tuple((n, rng.choice([1.0, 0.5, -1.5, 2.0])) for n in NAMES[:count])
    if way == "rows":
        names = tuple(rng.choice([*NAMES[:count], BASE]) for _ in range(rows))
    return {"adapters": adapters, "active": active, "names": names}


def draw_lora(rng, architecture):
    targets = LORA[architecture]
    return tuple(rng.sample(targets, rng.randint(1, len(targets)))) if rng.random() < 0.25 else ()


def interventions(case):
    """For each adapter all of its interventions, in the documented order, as plain dicts."""
    spelled = []
    for config in case.adapters:
        if "representations" in config:
            rest = {"low_rank_dimension": "rank"}
            spelled.append(
                [{rest.get(k, k): v for k, v in one.items()} for one in config["representations"]]
            )
            continue
        one = {k: v for k, v in config.items() if k not in ("layers", "tied")}
        specs = [config["positions"]]
        if not config.get("tied", True):
            specs = split(config["positions"])
        layers = config.get("layers", "all")
        layers = list(range(LAYERS)) if layers == "all" else [n % LAYERS for n in layers]
        if "." in config["component"]:
            layers = [None]
        spelled.append([{**one, "positions": s, "layer": n} for s in specs for n in layers])
    return spelled
