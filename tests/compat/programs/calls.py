"""Ways of calling a ReftModel: positions, pairs, labels and directions as scripts write them."""

import numpy as np
import torch
from _shared import (
    equal_start,
    first_of,
    is_ours,
    make_llama,
    make_tokenizer,
    plain,
)

import pyreft
from pyreft.dataset import get_intervention_locations, parse_positions
from pyreft.reft_model import ReftModel
from pyreft.reft_trainer import ReftDataCollator, ReftTrainerForCausalLM
from pyreft.utils import TaskType, get_reft_model

assert issubclass(ReftModel, torch.nn.Module) and TaskType.CAUSAL_LM
assert ReftDataCollator and ReftTrainerForCausalLM and parse_positions("f1+l1") == (1, 1)


def make_model(layers, rank=4):
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": rank,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=64, low_rank_dimension=rank, dtype=torch.float32
                ),
            }
            for layer in layers
        ]
    )
    return equal_start(get_reft_model(make_llama(), config))


tokenizer = make_tokenizer(12)
texts = ["user : Why is the sky blue ?", "user : Who are you today ?"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
base = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
one = {"input_ids": base["input_ids"][:1], "attention_mask": base["attention_mask"][:1]}
reft_model = make_model([0, 2])
numbers = {}


def keep(name, outputs):
    numbers[name] = plain(outputs.logits[:, -1])


with torch.no_grad():
    at = {"sources->base": (None, [[[2]], [[2]]])}
    keep("named", reft_model(one, unit_locations=at)[1])
    keep("positional", reft_model(one, None, at)[1])
    original, edited = reft_model(one, None, at, output_original_output=True)
    keep("original", original)
    keep("edited", edited)
    result = reft_model(one, unit_locations=at, return_dict=True)
    keep("original of the dict", result.original_outputs or original)
    keep("edited of the dict", result.intervened_outputs)
    # Position 0 holds the same token in both rows, and one row of positions is for both.
    keep(
        "a row for two", reft_model(base, unit_locations={"sources->base": (None, [[[0]]] * 2)})[1]
    )
    numpy = [[[np.int64(1), np.int64(3)]] * 2] * 2
    keep("numpy", reft_model(base, unit_locations={"sources->base": (None, numpy)})[1])
    for name, short in [
        ("an integer for all", {"sources->base": (None, 3)}),
        ("base, an integer", {"base": 3}),
        ("base, nested", {"base": [[[3], [4]], [[3], [4]]]}),
        ("base, a list of three", {"base": [1, 2, 3]}),
    ]:
        reft_model.use_fast = False  # In upstream scalar positions change what later calls do.
        keep(name, reft_model(base, unit_locations=short)[1])
    reft_model.use_fast = False
    keep("everywhere", reft_model(one)[1])
    keep("everywhere, named", reft_model(one, unit_locations=None)[1])
    # The six kinds of upstream do not read directions.
    keep("directions", reft_model(one, unit_locations=at, subspaces=None)[1])
    negative = {"sources->base": (None, [[[0, 1], [0, 1]], [[4, 5], [4, 5]]])}
    keep("other positions in each layer", reft_model(base, unit_locations=negative)[1])

# Labels that are the input, where the positions say what the prompt is.
_, outputs = reft_model(base, unit_locations=negative, labels=base["input_ids"])
numbers["loss of all tokens"] = float(outputs.loss)
outputs.loss.backward()
first = first_of(next(iter(reft_model.interventions.values())))
numbers["gradient"] = plain(first.learned_source.bias.grad)

# Two interventions on one token, in the order of the config.
both = make_model([1, 1])
keys = list(both.interventions.keys())
assert [key[-2:] for key in keys] == ["#0", "#1"], keys
with torch.no_grad():
    keep("two on one token", both(one, unit_locations={"sources->base": (None, [[[2]], [[2]]])})[1])
    keep("two on two", both(one, unit_locations={"sources->base": (None, [[[2, 3]], [[3, 4]]])})[1])

# A prompt as long as the tokenizer's limit: nothing of the answer is left, and no label.
long = tokenizer("user : one two three four five red green yes no maybe now", truncation=True)
locations = get_intervention_locations(
    last_position=len(long["input_ids"]), first_n=2, last_n=2, pad_mode="last", num_interventions=2
)
ids = torch.tensor([long["input_ids"]])
where = {"sources->base": (None, torch.tensor([locations]).permute(1, 0, 2).tolist())}
with torch.no_grad():
    keep(
        "as long as the limit",
        reft_model({"input_ids": ids, "attention_mask": ids.ne(0).int()}, unit_locations=where)[1],
    )

# What the config says.
config = reft_model.reft_config if is_ours() else reft_model.config
numbers["number of representations"] = len(config.representations)
numbers["layers"] = [representation.layer for representation in config.representations]
numbers["count"] = [len(reft_model.representations), reft_model.count_parameters()]
