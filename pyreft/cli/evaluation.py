"""`pyreft eval`: the loss on completions, with and without an adapter."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pyreft.annotations import Json
from pyreft.cli.answering import Answers
from pyreft.data import ReftDataCollator, make_examples
from pyreft.data.sources import load_rows
from pyreft.training.batches import without_ids


def completion_losses(answers: Answers, data: str, max_length: int | None, batch_size: int) -> Json:
    """Mean losses per token of the completions.

    Args:
        answers: The model and its tokenizer.
        data: A file of rows, or a data set on the Hub.
        max_length: Tokens of an example, at most.
        batch_size: Rows of a forward pass.

    Returns:
        "base model" and "adapter", each with "loss" in nats and "perplexity", and the number of
        "rows" and "tokens".
    """
    tokenizer, model = answers.tokenizer, answers.model
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    examples = make_examples(load_rows(None, data, "train"), tokenizer, max_length=max_length)
    collate = ReftDataCollator(tokenizer=tokenizer)
    totals = {"base model": 0.0, "adapter": 0.0}
    tokens = 0
    for batch in tqdm(DataLoader(examples, batch_size=batch_size, collate_fn=collate)):
        inputs = {name: value.to(model.device) for name, value in without_ids(batch).items()}
        count = int((inputs["labels"][:, 1:] != -100).sum())
        tokens += count
        for name in totals:
            off = model.disable_adapter() if name == "base model" else nullcontext()
            with torch.no_grad(), off:
                totals[name] += float(model(**inputs).loss) * count
    found: Json = {"rows": len(examples), "tokens": tokens}
    for name, total in totals.items():
        found[name] = {"loss": total / tokens, "perplexity": math.exp(total / tokens)}
    return found
