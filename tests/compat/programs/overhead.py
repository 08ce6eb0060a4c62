"""How long an edited generation takes: ranks, layers and positions in turn, on one base model."""

import time

import torch
from _shared import equal_start, make_llama, make_tokenizer, plain

from pyreft import LoreftIntervention, ReftConfig, get_reft_model

model, tokenizer = make_llama(), make_tokenizer(1024)
instructions = ["Why is the sky blue today ?", "Name a color and a cat ."]
numbers = {}


def measure(name, reft_model, locations):
    """`locations` is given the index of the last token."""
    times = []
    for index, instruction in enumerate(instructions):
        prompt = f"### Instruction : {instruction} ### Response :"
        prompt = tokenizer(prompt, max_length=1024, return_tensors="pt").to("cpu")
        last = prompt["input_ids"].shape[-1] - 1
        start = time.time()
        _, response = reft_model.generate(
            prompt,
            unit_locations={"sources->base": (None, locations(last))},
            intervene_on_prompt=True,
            max_new_tokens=6,
            do_sample=False,
        )
        times.append((time.time() - start, prompt["input_ids"].shape[-1], len(response[0])))
        bare = model.generate(**prompt, max_new_tokens=6, do_sample=False)
        numbers[f"{name}, {index}"] = plain(response)
        numbers[f"bare, {index}"] = plain(bare)
    return times


def wrap(rank, layers):
    config = ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "intervention": LoreftIntervention(
                    embed_dim=model.config.hidden_size, low_rank_dimension=rank, dtype=torch.float32
                ),
            }
            for layer in layers
        ]
    )
    return equal_start(get_reft_model(model, config))


for rank in [1, 4, 32]:
    measure(f"rank {rank}", wrap(rank, [1]), lambda last: [[[last]]])
for layers in [[0, 1], [0, 1, 2]]:
    measure(f"layers {layers}", wrap(8, layers), lambda last: [[[last]]] * len(layers))  # noqa: B023
for positions in [2, 4, 6]:
    # From the last token backwards.
    measure(
        f"positions {positions}",
        wrap(8, [1]),
        lambda last: [[[last - i for i in range(positions)]]],  # noqa: B023
    )
