"""Components by pyvene's names: what a layer, its MLP and its attention put out, and the query."""

import torch
from _shared import equal_start, make_llama, make_tokenizer, plain

import pyreft

tokenizer = make_tokenizer()
prompt = tokenizer("user : Why is the sky blue ? assistant :", return_tensors="pt")
base = {"input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"]}
last = prompt["input_ids"].shape[-1] - 1
numbers = {}
for component, width in [
    ("block_input", 64),
    ("block_output", 64),
    ("mlp_input", 64),
    ("mlp_output", 64),
    ("mlp_activation", 96),
    ("attention_input", 64),
    ("attention_output", 64),
    ("attention_value_output", 64),
    ("query_output", 64),
    ("key_output", 32),
    ("value_output", 32),
    ("model.layers[1].output", 64),
    ("model.layers[1].mlp.output", 64),
    ("model.layers[1].mlp.down_proj.output", 64),
    ("model.layers[1].self_attn.q_proj.output", 64),
    ("model.layers[1].self_attn.o_proj.input", 64),
]:
    config = pyreft.ReftConfig(
        representations={
            "layer": 1,
            "component": component,
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=width, low_rank_dimension=4, dtype=torch.float32
            ),
        }
    )
    reft_model = equal_start(pyreft.get_reft_model(make_llama(), config))
    with torch.no_grad():
        _, outputs = reft_model(base, unit_locations={"sources->base": (None, [[[1, last]]])})
    numbers[component] = plain(outputs.logits[0, -1])
