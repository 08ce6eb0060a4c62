"""Texts padded to one length, and which of their tokens a model edits."""

import torch
from by_hand import find_component, first_output

from conftest import VOCAB, randomize
from pyreft import ReftConfig, get_reft_model

LAYER = 1
BASE_INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")


def wrap(base, **config):
    """A fresh adapter, at one layer by default, that edits strongly whatever its kind."""
    config = ReftConfig(**{"layers": [LAYER], "rank": 4} | config)
    return randomize(get_reft_model(base, config).eval(), 0.2)


def texts(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def collate(rows, side="right", extra=0, prompts=None):
    """Rows padded to one length, with `completion_mask` if the lengths of prompts are given."""
    width = max(len(row) for row in rows) + extra
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start = {"right": 0, "left": width - len(row), "both": extra // 2}[side]
        ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
        if prompts is not None:
            completion[index, start + prompts[index] : start + len(row)] = 1
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return batch if prompts is None else batch | {"completion_mask": completion}


def by_row(tensor, batch):
    return [row[mask.bool()] for row, mask in zip(tensor, batch["attention_mask"], strict=True)]


@torch.no_grad()
def last_hidden(model, batch):
    return by_row(model(**batch, output_hidden_states=True).hidden_states[-1], batch)


@torch.no_grad()
def edited_tokens(model, batch, name="block_output"):
    """For each row, the tokens whose hidden state is not bit-identical to the base model's."""
    seen = []
    handle = find_component(model.model, LAYER, name).register_forward_hook(
        lambda module, args, output: seen.append(first_output(output).clone())
    )
    model(**batch)
    with model.disable_adapter():
        model(**{key: value for key, value in batch.items() if key in BASE_INPUTS})
    handle.remove()
    edited, bare = (by_row(hidden, batch) for hidden in seen)
    return [
        (one != other).any(-1).nonzero().flatten().tolist()
        for one, other in zip(edited, bare, strict=True)
    ]


def assert_close(ones, others, tolerance=1e-5):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
