"""ms-swift (modelscope/ms-swift): its tuner `reft`, which wraps and patches a ReftModel.

It gives each class of pyreft another `forward`, moves configs about, and puts hooks on the model,
so that a trainer that knows nothing of ReFT can call it with `input_ids` and `labels`.
"""

from types import MethodType

import torch
from _shared import equal_start, make_llama, make_tokenizer, plain

import pyreft
from pyreft import (
    ConsreftIntervention,
    DireftIntervention,
    LobireftIntervention,
    LoreftIntervention,
    NodireftIntervention,
    NoreftIntervention,
)
from pyreft.interventions import LowRankRotateLayer

KINDS = [
    NoreftIntervention,
    LoreftIntervention,
    ConsreftIntervention,
    LobireftIntervention,
    DireftIntervention,
    NodireftIntervention,
]
calls = []


def rotate(self, x):
    self.to(x.device)
    return self.forward_origin(x)


def intervene(self, base, source=None, subspaces=None):
    calls.append(type(self).__name__)
    self.to(base.device)
    return self.forward_origin(base, source, subspaces)


if not hasattr(LowRankRotateLayer, "forward_origin"):
    LowRankRotateLayer.forward_origin = LowRankRotateLayer.forward
    LowRankRotateLayer.forward = rotate
    for kind in KINDS:
        kind.forward_origin = kind.forward
        kind.forward = intervene


def read_locations(arguments):
    if "intervention_locations" not in arguments:
        return None
    locations = arguments["intervention_locations"]
    if locations.dim() == 3:
        return {"sources->base": (None, locations.permute(1, 0, 2).tolist())}
    return {"sources->base": (None, 0)}


def before_forward(module, args, kwargs):
    if "base" in kwargs:
        return args, kwargs
    if "input_ids" not in kwargs:
        raise ValueError("no input_ids")
    base = {"input_ids": kwargs["input_ids"], "attention_mask": kwargs["attention_mask"]}
    subspaces = kwargs["subspaces"].permute(1, 0, 2).tolist() if "subspaces" in kwargs else None
    new = {"base": base, "unit_locations": read_locations(kwargs), "labels": kwargs["labels"]}
    return args, new | {"subspaces": subspaces}


def after_forward(module, args, kwargs, outputs):
    return outputs[1]


def generate(self, **kwargs):
    locations = read_locations(kwargs)
    kwargs.pop("intervention_locations", None)
    base = {name: kwargs.pop(name) for name in ("input_ids", "attention_mask")}
    new = {"base": base, "unit_locations": locations, "subspaces": None}
    return self.generate_origin(**new, **kwargs)[1]


def prepare_model(model, kind, layers, rank, layer_key="model.layers"):
    representations = []
    for index, _ in enumerate(model.get_submodule(layer_key)):
        if layers and index not in layers:
            continue
        representations.append(
            {
                "layer": index,
                "component": layer_key + f"[{index}].output",
                "low_rank_dimension": rank,
                "intervention": kind(
                    embed_dim=model.config.hidden_size,
                    low_rank_dimension=rank,
                    dtype=torch.float32,
                    **(
                        {"add_bias": False}
                        if kind in (NoreftIntervention, NodireftIntervention)
                        else {}
                    ),
                ),
            }
        )
    reft_config = pyreft.ReftConfig(representations=representations)
    reft_model = pyreft.get_reft_model(model, reft_config, set_device=False)
    equal_start(reft_model)
    reft_model.reft_config = reft_model.config
    reft_model.config = reft_model.model.config
    reft_model.generate_origin = reft_model.generate
    reft_model.generate = MethodType(generate, reft_model)
    reft_model.register_forward_pre_hook(before_forward, with_kwargs=True)
    reft_model.register_forward_hook(after_forward, with_kwargs=True)
    return reft_model


tokenizer = make_tokenizer()
texts = ["user : Who are you ? assistant : sun moon", "user : Name a color . assistant : red one"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
labels = batch["input_ids"].clone()
labels[:, :-2] = -100
numbers = {}
for kind in KINDS:
    reft_model = prepare_model(make_llama(), kind, [0, 2], 4)
    locations = torch.tensor([[[0, 5]] * 2] * 2)
    optimizer = torch.optim.SGD(
        [p for v in reft_model.interventions.values() for p in v.parameters()], lr=0.01
    )
    losses = []
    for _ in range(3):
        outputs = reft_model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
            intervention_locations=locations,
        )
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(outputs.loss))
    numbers[f"{kind.__name__}, losses"] = losses
    prompt = tokenizer("user : Who am I ? assistant :", return_tensors="pt")
    ids = reft_model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        intervene_on_prompt=True,
        max_new_tokens=4,
        do_sample=False,
    )
    numbers[f"{kind.__name__}, ids without positions"] = plain(ids)
    numbers[f"{kind.__name__}, calls"] = calls.count(kind.__name__)
    reft_model.save_intervention(save_directory=f"./{kind.__name__}", include_model=False)
    assert reft_model.config.hidden_size == 64
    assert len(reft_model.reft_config.representations) == 2
