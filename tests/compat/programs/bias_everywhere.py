"""EasySteer's measurement: a vector is added to each generated token, at every layer.

No positions, and `intervene_on_prompt=False`: the prompt is left alone.
"""

import torch
from _shared import make_llama, make_tokenizer, plain

import pyreft

try:
    from pyvene import (
        DistributedRepresentationIntervention,
        SourcelessIntervention,
        TrainableIntervention,
    )
except ImportError:
    from pyreft.interventions import (
        DistributedRepresentationIntervention,
        SourcelessIntervention,
        TrainableIntervention,
    )


class BiasIntervention(
    SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.vector = torch.nn.Parameter(torch.zeros(self.embed_dim))

    def forward(self, base, source=None, subspaces=None):
        return base + self.vector.to(base.dtype)


model = make_llama()
reft_config = pyreft.ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "intervention": BiasIntervention(embed_dim=model.config.hidden_size),
        }
        for layer in range(model.config.num_hidden_layers)
    ]
)
reft_model = pyreft.get_reft_model(model, reft_config)
with torch.no_grad():
    for module in reft_model.interventions.values():
        for parameter in module.parameters():
            parameter.zero_()
reft_model.set_device("cpu")
reft_model.eval()

tokenizer = make_tokenizer()
tokenizer.padding_side = "left"
texts = ["user : Why is the sky blue ? assistant :", "user : Name a color . assistant :"]
batch = tokenizer(texts, return_tensors="pt", padding=True)
batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
arguments = {
    "intervene_on_prompt": False,
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "do_sample": False,
    "eos_token_id": tokenizer.eos_token_id,
}
_, nothing = reft_model.generate(batch, **arguments)
bare = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
assert torch.equal(nothing, bare)
with torch.no_grad():
    for index, module in enumerate(reft_model.interventions.values()):
        module.vector.copy_(5 * torch.sin(torch.arange(64) * (index + 1.7)))
_, generated = reft_model.generate(batch, **arguments)
alone = tokenizer(texts[0], return_tensors="pt")
_, one = reft_model.generate(
    {"input_ids": alone["input_ids"], "attention_mask": alone["attention_mask"]}, **arguments
)
arguments["intervene_on_prompt"] = True
_, everything = reft_model.generate(
    {"input_ids": alone["input_ids"], "attention_mask": alone["attention_mask"]}, **arguments
)
width = batch["input_ids"].shape[1]
numbers = {
    "bare": plain(bare[:, width:]),
    "generated tokens": plain(generated[:, width:]),
    "of one text": plain(one),
    "prompt as well": plain(everything),
}
assert all(generated[row, width:].tolist() != bare[row, width:].tolist() for row in range(2))
