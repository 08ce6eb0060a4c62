"""Forward passes, gradients, merged and combined adapters against the reference."""

import copy
import tempfile
import warnings

import torch
from adapter_cases import NAMES
from bases import cache_name, make
from batches import batch, embedded, explicit
from comparing import ROUNDED, compare
from position_rules import text
from row_by_row import Turn, keys_and_values
from subject import call, refusal
from torch.nn import functional


def expected(pair, rows, cache=False, **options):
    """The outputs of the reference for each row."""
    return [
        pair.reference.run(pair.edits(row), [Turn(0, n)], ids, read, cache, **options)
        for row, (ids, n, _, read) in enumerate(rows)
    ]


def columns(pair, arguments, row, ids):
    """Which columns of the logits are of a row's text."""
    if pair.case.two_stacks:
        return torch.arange(len(ids))
    if (mask := arguments.get("attention_mask")) is not None:
        return text(mask[row])
    return torch.arange(len(ids))


def loss(outputs, rows, architecture):
    """What a model's loss is: the cross entropy of every label, of the next token if causal."""
    if architecture == "bert":
        logits = torch.cat([one.logits for one in outputs])
        return functional.cross_entropy(logits, torch.stack([label for _, _, label, _ in rows]))
    logits, labels = [], []
    shift = int(architecture not in ("t5", "bart"))
    for one, (_, _, label, _) in zip(outputs, rows, strict=True):
        logits.append(one.logits[0, : len(label) - shift])
        labels.append(label[shift:])
    logits, labels = torch.cat(logits), torch.cat(labels)
    chances = logits.log_softmax(-1)[labels != -100]
    return -chances.gather(1, labels[labels != -100, None]).mean()


def check_forward(pair):
    """Logits, loss, and the cache that is returned."""
    case = pair.case
    arguments, rows = batch(case)
    refused = refusal(pair, rows)
    given = embedded(pair.model, arguments) if case.options.get("embeddings") else {**arguments}
    cached = case.architecture not in ("bert", "t5", "bart") and case.seed % 2 == 0
    given |= {"use_cache": True} if cached else {}
    seen = {"output_hidden_states": True} if case.options.get("output_hidden_states") else {}
    with torch.no_grad():
        outputs = call(refused, pair.model, **given, **seen, **explicit(case))
        wanted = expected(pair, rows, cached, **seen)
        compare_rows(pair, arguments, rows, outputs, wanted)
        if case.ends == "labels":
            compare("loss", outputs.loss, loss(wanted, rows, case.architecture))


def compare_rows(pair, arguments, rows, outputs, wanted, tolerance=None):
    tolerance = {} if tolerance is None else {"tolerance": tolerance}
    for row, ((ids, *_), one) in enumerate(zip(rows, wanted, strict=True)):
        here = columns(pair, arguments, row, ids)
        for name in ("hidden_states", "decoder_hidden_states"):
            layers = [getattr(these, name, None) or () for these in (outputs, one)]
            for index, (mine, other) in enumerate(zip(*layers, strict=True)):
                compare(f"{name} {index} of row {row}", mine[row, here], other[0])
        if pair.case.architecture == "bert":
            compare(f"logits of row {row}", outputs.logits[row], one.logits[0], **tolerance)
            continue
        compare(f"logits of row {row}", outputs.logits[row, here], one.logits[0], **tolerance)
        if getattr(one, cache_name(pair.model), None) is None or pair.case.two_stacks:
            continue
        compare_cache(pair, outputs, one, row, here, outputs.logits.shape[1])


def compare_cache(pair, outputs, one, row, here, width):
    """The keys and values of a row at columns of `width`, against those of the row by itself.

    Layers with a window keep the last columns alone.
    """
    layers = zip(
        keys_and_values(pair.model, outputs), keys_and_values(pair.reference.base, one), strict=True
    )
    for index, (mine, other) in enumerate(layers):
        for what, found, wanted in zip(("keys", "values"), mine, other, strict=True):
            gone, missing = width - found.shape[2], len(here) - wanted.shape[2]
            both = [(c - gone, i - missing) for i, c in enumerate(here.tolist())]
            both = [(c, i) for c, i in both if c >= 0 and i >= 0]
            at, by = [c for c, _ in both], [i for _, i in both]
            compare(f"{what} of layer {index}, row {row}", found[row][:, at], wanted[0][:, by])


def check_gradients(pair):
    """The gradients of every parameter that is trained, PEFT's LoRA included."""
    case = pair.case
    arguments, rows = batch(case)
    given = embedded(pair.model, arguments) if case.options.get("embeddings") else {**arguments}
    if case.options.get("checkpointing"):
        pair.model.train()
        pair.model.gradient_checkpointing_enable({"use_reentrant": False})
    refused = refusal(pair, rows)
    if pair.reference.two_stacks or case.architecture != "bert":
        given["use_cache"] = False
    outputs = call(refused, pair.model, **given, **explicit(case))
    wanted = expected(pair, rows)
    if case.ends == "labels":
        found, other = outputs.loss, loss(wanted, rows, case.architecture)
    else:
        found, other = weighted(pair, arguments, rows, outputs, wanted)
    compare("loss", found.detach(), other.detach())
    if not other.requires_grad:
        return
    if found.requires_grad:
        torch.autograd.backward(found)
    torch.autograd.backward(other)
    lora = dict(pair.reference.base.named_parameters())
    pairs = [
        (name, mine, lora[name].grad)
        for name, mine in pair.model.model.named_parameters()
        if "lora_" in name and mine.requires_grad
    ]
    for adapter, (name, parameters) in enumerate(zip(NAMES, pair.parameters, strict=False)):
        modules = list(pair.model.adapters[name].interventions.values())
        if name not in dict(case.active):
            continue
        for index, (module, one) in enumerate(zip(modules, parameters, strict=True)):
            for number, (parameter, grad) in enumerate(one.gradients(module)):
                if parameter.requires_grad:
                    pairs.append((f"{adapter}.{index}.{number}", parameter, grad))
    for name, parameter, grad in pairs:
        zero = torch.zeros_like(parameter)
        mine = zero if parameter.grad is None else parameter.grad
        compare(f"gradient of {name}", mine, zero if grad is None else grad)


def weighted(pair, arguments, rows, outputs, wanted):
    """A sum of logits with random weights: pyreft's, and the reference's."""
    generator = torch.Generator().manual_seed(pair.case.seed)
    found = other = torch.zeros((), dtype=torch.float64)
    for row, ((ids, *_), one) in enumerate(zip(rows, wanted, strict=True)):
        logits = outputs.logits[row][None]
        if pair.case.architecture != "bert":
            logits = outputs.logits[row, columns(pair, arguments, row, ids)][None]
        weights = torch.randn(one.logits.shape, generator=generator, dtype=torch.float64)
        found, other = found + (weights * logits).mean(), other + (weights * one.logits).mean()
    return found, other


def check_merge(pair):
    """The weights take up the edits."""
    arguments, rows = batch(pair.case)
    wanted = _no_grad(expected, pair, rows)
    base = pair.model.merge_and_unload(add_bias=True)
    compare_rows(pair, arguments, rows, _no_grad(base, **arguments), wanted)


def check_export(pair):
    """PEFT's LoRA takes up the edits."""
    from peft import PeftModel

    arguments, rows = batch(pair.case)
    wanted = _no_grad(expected, pair, rows)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        # PEFT uses names that transformers has changed, and warns of a bias where there was none.
        warnings.simplefilter("ignore")
        pair.model.export_lora(f"{directory}/lora")
        base = copy.deepcopy(make(pair.case.architecture, pair.case.weights))
        lora = PeftModel.from_pretrained(base, f"{directory}/lora")
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.double()
    compare_rows(pair, arguments, rows, _no_grad(lora, **arguments), wanted, ROUNDED)


def check_combine(pair):
    """One adapter does what several do with their weights."""
    names, weights = zip(*pair.case.active, strict=True)
    ends = {(c["layer"], c["component"]): set() for each in pair.configs for c in each}
    for each in pair.configs:
        for config in each:
            ends[config["layer"], config["component"]].add(str(config["positions"]))
    # On short prompts the ends of two adapters meet, and those of one do not.
    refused = "ends of different adapters" if max(map(len, ends.values())) > 1 else None
    refused = refused or _too_many_directions(pair)
    arguments = {"weights": list(weights), "adapter_name": "sum"}
    call(refused, pair.model.add_weighted_adapter, adapters=list(names), **arguments)
    pair.model.set_adapter("sum")
    check_forward(pair)


def _too_many_directions(pair):
    """Why two interventions at one place do not fit into one, or None."""
    shapes = {}
    for configs, parameters in zip(pair.configs, pair.parameters, strict=True):
        for config, one in zip(configs, parameters, strict=True):
            at = (config["layer"], config["component"])
            shapes.setdefault(at, []).append(one.tensors["basis"].shape)
    fits = all(sum(rank for rank, _ in each) <= each[0][1] for each in shapes.values())
    return None if fits else "the ranks add up to more than the width"


@torch.no_grad()
def _no_grad(function, *arguments, **named):
    return function(*arguments, **named)
