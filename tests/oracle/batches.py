"""Batches of a case: padded, and row by row without padding."""

import random

import torch
from bases import PAD, VOCAB
from position_rules import AFTER_LARGE, LARGE
from row_by_row import shifted


def token_ids(rng, length, low=3):
    return [rng.randrange(low, VOCAB) for _ in range(length)]


def texts(case):
    """The ids of each row: prompts and completions, or what encoder and decoder are to predict."""
    rng = random.Random(case.seed)
    shared = token_ids(rng, case.beginning)
    if AFTER_LARGE in str(case.adapters):
        # Nothing is edited in what they begin with, and what follows it may be.
        shared = [3 + token % (LARGE - 3) for token in shared[1:]] + shared[:1]
    prompts = [shared + token_ids(rng, n - case.beginning) for n in case.prompts]
    if case.seed % 4 == 0 and not case.beginning:
        # They repeat, as prompt lookup needs it.
        prompts = [(row[: len(row) // 2 + 1] * 2)[: len(row)] for row in prompts]
    completions = [token_ids(rng, n) for n in case.completions]
    assert all(PAD not in row for row in prompts)
    return prompts, completions


def padded(rows, side, extra=0, fill=PAD):
    """Lists of ids -> (B, T) of them and its mask."""
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, where], mask[index, where] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def token_positions(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


def batch(case):
    """The arguments of `forward`, and for each row its text, prompt length and labels.

    Returns:
        (arguments, rows), rows of (ids, n, labels, read): the text without padding, of the decoder
        if there is one; the number of tokens of its prompt; labels or None; what an encoder reads.
    """
    prompts, completions = texts(case)
    if case.two_stacks:
        return _two_stacks(case, prompts, completions)
    rows, whole = [], [p + c for p, c in zip(prompts, completions, strict=True)]
    ids, mask = padded(whole, case.padding, case.extra)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if case.padding == "left" or case.seed % 3 == 0:
        arguments["position_ids"] = token_positions(mask)
    elif int(mask.min()) == 1 and case.seed % 3 == 1:
        del arguments["attention_mask"]
    labels = [[-100] * len(p) + c for p, c in zip(prompts, completions, strict=True)]
    if case.options.get("unlabelled_end"):
        labels = [[*row[:-1], -100] for row in labels]
    if case.architecture == "bert":
        classes = torch.tensor([(sum(row) + case.seed) % 3 for row in whole])
        if case.ends:
            arguments["labels"] = classes
        for row, one in zip(whole, classes, strict=True):
            rows.append((torch.tensor(row), len(row), one if case.ends else None, None))
        return arguments, rows
    if case.ends == "labels":
        arguments["labels"], _ = padded(labels, case.padding, case.extra, fill=-100)
    if case.ends == "completion_mask":
        marks = [[0] * len(p) + [1] * len(c) for p, c in zip(prompts, completions, strict=True)]
        arguments["completion_mask"], _ = padded(marks, case.padding, case.extra)
    for row, prompt, label in zip(whole, prompts, labels, strict=True):
        n = len(prompt) if case.ends else len(row)
        told = torch.tensor(label) if case.ends == "labels" else None
        rows.append((torch.tensor(row), n, told, None))
    return arguments, rows


def _two_stacks(case, prompts, completions):
    ids, mask = padded(prompts, case.padding, case.extra)
    arguments, rows = {"input_ids": ids, "attention_mask": mask}, []
    skipped = [
        (len(c) - 1) // 2 if case.options.get("unlabelled_start") else 0 for c in completions
    ]
    labels = [[-100] * s + c[s:] for s, c in zip(skipped, completions, strict=True)]
    decoded = [shifted(torch.tensor(row)) for row in labels]
    marks = [[0] * (len(c) // 2) + [1] * (len(c) - len(c) // 2) for c in completions]
    if case.ends == "labels":
        arguments["labels"], _ = padded(labels, "right", fill=-100)
    else:
        inputs, seen = padded([row.tolist() for row in decoded], "right")
        arguments |= {"decoder_input_ids": inputs, "decoder_attention_mask": seen}
        if case.ends == "completion_mask":
            arguments["completion_mask"], _ = padded(marks, "right")
    for index, row in enumerate(decoded):
        n, told = len(row), None
        if case.ends == "labels":
            n, told = skipped[index] + 1, torch.tensor(labels[index])
        if case.ends == "completion_mask":
            n = len(row) // 2 + 1
        rows.append((row, n, told, torch.tensor(prompts[index])))
    return arguments, rows


def embedded(model, arguments):
    """The same with embeddings in the place of ids."""
    rest = {name: value for name, value in arguments.items() if name != "input_ids"}
    embeddings = model.get_input_embeddings()(arguments["input_ids"]).detach()
    return {"inputs_embeds": embeddings, **rest}


def explicit(case):
    """The arguments of a call that are for edits alone."""
    found = {}
    if case.names is not None:
        found["adapter_names"] = list(case.names)
    if case.locations is not None:
        found["intervention_locations"] = torch.tensor(case.locations)
    if case.subspaces is not None:
        found["subspaces"] = [list(map(list, one)) for one in case.subspaces]
    return found
