"""Interventions of users' own, known to no registry, and arguments that upstream takes or ignores.

One derives from pyreft's LoReFT and one from pyvene's base classes; one holds bfloat16 on a
bfloat16 model.
"""

import torch
from _shared import (
    equal_start,
    first_of,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    start,
    training_arguments,
)

import pyreft
from pyreft.interventions import (
    DistributedRepresentationIntervention,
    LowRankRotateLayer,
    SourcelessIntervention,
    TrainableIntervention,
)

tolerances = {"logits in bfloat16": 0.05}


class ScaledLoreft(pyreft.LoreftIntervention):
    """LoReFT, the edit times a number that learns."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = torch.nn.Parameter(torch.tensor(float(kwargs.get("scale", 1.0))))

    def forward(self, base, source=None, subspaces=None):
        rotated = self.rotate_layer(base)
        edit = self.act_fn(self.learned_source(base)) - rotated
        output = base + self.scale * torch.matmul(edit, self.rotate_layer.weight.T)
        return self.dropout(output.to(base.dtype))


class GatedIntervention(
    SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    """A gate for each token, and a direction of its own rotation."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        layer = LowRankRotateLayer(self.embed_dim, kwargs["low_rank_dimension"], init_orth=True)
        self.rotate_layer = torch.nn.utils.parametrizations.orthogonal(layer)
        self.learned_source = torch.nn.Linear(self.embed_dim, kwargs["low_rank_dimension"])
        self.gate = torch.nn.Linear(self.embed_dim, 1)
        assert self.trainable and self.keep_last_dim

    def forward(self, base, source=None, subspaces=None):
        edit = torch.matmul(
            self.learned_source(base) - self.rotate_layer(base), self.rotate_layer.weight.T
        )
        return base + torch.sigmoid(self.gate(base)) * edit


def fill_gated(intervention, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in intervention.named_parameters():
            if "parametrizations" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        square = torch.randn(64, 64, generator=generator)
        columns = torch.linalg.qr(square)[0]
        intervention.rotate_layer.weight = columns[:, : intervention.rotate_layer.weight.shape[1]]
        # The basis that torch completes it with is random.
        intervention.rotate_layer.parametrizations.weight[0].base = columns.contiguous()


texts = ["user : Why is the sky blue ? assistant :", "user : Name a color . assistant :"]
tokenizer = make_tokenizer()


def wrap(model, intervention, layer=1, rank=4):
    config = pyreft.ReftConfig(
        representations={
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": rank,
            "intervention": intervention,
        }
    )
    return pyreft.get_reft_model(model, config)


def logits(reft_model):
    prompt = tokenizer(texts[0], return_tensors="pt")
    base = {"input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"]}
    last = prompt["input_ids"].shape[-1] - 1
    with torch.no_grad():
        _, outputs = reft_model(base, unit_locations={"sources->base": (None, [[[0, last]]])})
    return plain(outputs.logits[0, -1])


def learn(reft_model, model):
    data_module = pyreft.make_last_position_supervised_data_module(
        tokenizer, model, texts, ["cold water", "red"]
    )
    trainer = pyreft.ReftTrainerForCausalLM(
        model=reft_model,
        tokenizer=tokenizer,
        args=training_arguments(max_steps=5, learning_rate=5e-3),
        **data_module,
    )
    losses = keep_losses(trainer)
    trainer.train()
    return losses


numbers = {}
model = make_llama()
arguments = {"embed_dim": 64, "low_rank_dimension": 4, "dtype": torch.float32}
reft_model = wrap(model, ScaledLoreft(**arguments, scale=0.5))
equal_start(reft_model)
numbers["scaled, losses"] = learn(reft_model, model)
numbers["scaled, logits"] = logits(reft_model)
reft_model.save("./scaled")

model = make_llama()
reft_model = wrap(model, GatedIntervention(embed_dim=64, low_rank_dimension=4))
fill_gated(first_of(next(iter(reft_model.interventions.values()))))
numbers["gated, losses"] = learn(reft_model, model)
numbers["gated, logits"] = logits(reft_model)

# Arguments that are tensors, or that no class reads; a rank in the representation that is another.
intervention = pyreft.LoreftIntervention(
    init_orth=True,
    embed_dim=torch.tensor(64),
    low_rank_dimension=4,
    dtype=torch.float32,
    dropout=0.0,
    act_fn=None,
    device="cpu",
    add_bias=False,
)
start(intervention)
numbers["another rank, logits"] = logits(wrap(make_llama(), intervention, rank=8))
assert intervention.state_dict()["rotate_layer"].shape == (64, 4)

# A subclass that asks for bfloat16, on a bfloat16 model.
arguments["dtype"] = torch.bfloat16
reft_model = wrap(make_llama(dtype=torch.bfloat16), ScaledLoreft(**arguments))
equal_start(reft_model)
numbers["logits in bfloat16"] = logits(reft_model)
