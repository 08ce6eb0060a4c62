"""A script that imports pyvene beside pyreft: its config, its mappings, its base classes.

Needs pyvene, which imports beside transformers 5 although nothing of it is used there.
"""

import torch
import transformers
from _shared import equal_start, make_llama, make_tokenizer, needs_pyvene, plain, unwrapped

pv = needs_pyvene()

import pyreft  # noqa: E402

pv.type_to_module_mapping[transformers.LlamaForSequenceClassification] = {
    "block_output": ("model.layers[%s]", pv.models.constants.CONST_OUTPUT_HOOK)
}
pv.type_to_dimension_mapping[transformers.LlamaForSequenceClassification] = {
    "block_output": ("hidden_size",)
}


class Addition(
    pv.SourcelessIntervention, pv.TrainableIntervention, pv.DistributedRepresentationIntervention
):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.vector = torch.nn.Parameter(torch.sin(torch.arange(float(self.embed_dim))))

    def forward(self, base, source=None, subspaces=None):
        return pv.InterventionOutput(output=base + self.vector, latent=None)


class WithLatent(
    pv.SourcelessIntervention, pv.TrainableIntervention, pv.DistributedRepresentationIntervention
):
    """An edit that hands out the latent that it is made of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.proj = torch.nn.Linear(self.embed_dim, kwargs["low_rank_dimension"], bias=False)
        with torch.no_grad():
            self.proj.weight.copy_(torch.sin(torch.arange(256.0)).view(4, 64) / 4)

    def forward(self, base, source=None, subspaces=None):
        latent = torch.relu(self.proj(base))
        output = base + torch.matmul(latent, self.proj.weight)
        return pv.InterventionOutput(output=output.to(base.dtype), latent=latent)


tokenizer = make_tokenizer()
prompt = tokenizer("user : Why is the sky blue ? assistant :", return_tensors="pt")
base = {"input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"]}
at = {"sources->base": (None, [[[0, 3]], [[0, 3]]])}
loreft = pyreft.LoreftIntervention(embed_dim=64, low_rank_dimension=4, dtype=torch.float32)
representations = [
    {"layer": 0, "component": "block_output", "low_rank_dimension": 4, "intervention": loreft},
    {"layer": 2, "component": "block_output", "intervention": Addition(embed_dim=64)},
]
numbers = {}
for name, config in [
    ("ReftConfig", pyreft.ReftConfig(representations=representations)),
    ("IntervenableConfig", pv.IntervenableConfig(representations=representations)),
]:
    reft_model = pyreft.get_reft_model(make_llama(), config)
    first = unwrapped(next(iter(reft_model.interventions.values())))
    assert isinstance(first, pyreft.LoreftIntervention)
    one = pyreft.ReftConfig(representations=representations[:1])
    equal_start(pyreft.get_reft_model(make_llama(), one))
    with torch.no_grad():
        _, outputs = reft_model(base, unit_locations=at)
    numbers[name] = plain(outputs.logits[0, -1])
trainable = [
    isinstance(unwrapped(v), pv.TrainableIntervention) for v in reft_model.interventions.values()
]
numbers["trainable"] = sum(map(float, trainable))

config = pyreft.ReftConfig(
    representations={
        "layer": 1,
        "component": "block_output",
        "low_rank_dimension": 4,
        "intervention": WithLatent(embed_dim=64, low_rank_dimension=4),
    }
)
reft_model = pyreft.get_reft_model(make_llama(), config)
_, outputs = reft_model(
    base,
    unit_locations={"sources->base": (None, [[[0, 3]]])},
    labels=base["input_ids"],
)
outputs.loss.backward()
(latent,) = reft_model.interventions.values()
numbers["loss with a latent"] = float(outputs.loss)
numbers["gradient with a latent"] = plain(unwrapped(latent).proj.weight.grad)

classifier = make_llama("SequenceClassification", num_labels=2)
classifier.config.pad_token_id = 0
config = pyreft.ReftConfig(representations=representations[:1])
reft_model = pyreft.get_reft_model(classifier, config)
with torch.no_grad():
    _, outputs = reft_model(base, unit_locations={"sources->base": (None, [[[0, 3]]])})
numbers["classifier"] = plain(outputs.logits)
