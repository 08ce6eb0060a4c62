"""A learned edit, turned up, off and round: every token is edited, as no position is given."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
from _shared import (
    equal_start,
    first_of,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftTrainerForCausalLM,
    get_reft_model,
)

low_rank, layers, device = 4, [0, 2], "cpu"
FULL_SUBSPACE = list(range(low_rank))


class SubloreftIntervention(LoreftIntervention):
    """A LoReFT with a coefficient for each of its directions."""

    def __init__(self, **kwargs):
        given = None
        if "subspace_coeff" in kwargs:
            given = kwargs["subspace_coeff"].copy()
            del kwargs["subspace_coeff"]
        # Before torch's __init__, as the notebook has it.
        self.subspace_coeff = torch.ones(kwargs["low_rank_dimension"]).to(device)
        if given is not None:
            self.subspace_coeff = torch.tensor(given).to(device)
        super().__init__(**kwargs)

    def forward(self, base, source=None, subspaces=None, **kwargs):
        assert subspaces is not None
        difference = self.act_fn(self.learned_source(base)) - self.rotate_layer(base)
        coefficients, directions = [], []
        for example in range(len(difference)):
            chosen = subspaces[example]
            coefficients += [difference[example, :, chosen] * self.subspace_coeff[chosen]]
            directions += [self.rotate_layer.weight[..., chosen].T]
        edit = torch.bmm(torch.stack(coefficients), torch.stack(directions))
        return self.dropout((base + edit).to(base.dtype))


@dataclass
class PaddingCollator:
    """A pad token before each text; there are no intervention locations."""

    tokenizer: Any
    data_collator: Any

    def __call__(self, instances):
        for item in instances:
            pad = torch.tensor([self.tokenizer.pad_token_id])
            item["input_ids"] = torch.cat((pad, torch.tensor(item["input_ids"])))
            item["labels"] = torch.cat((torch.tensor([-100]), torch.tensor(item["labels"])))
            # What a masked token predicts depends on the release of transformers.
            item["labels"][1] = -100
            item["attention_mask"] = (item["input_ids"] != self.tokenizer.pad_token_id).int()
        return self.data_collator(instances)


model, tokenizer = make_llama(), make_tokenizer(128, begins_with_bos=False)
reft_config = ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": low_rank,
            "intervention": SubloreftIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=low_rank,
                subspace_coeff=[1.0] * low_rank,
                dtype=torch.float32,
            ),
        }
        for layer in layers
    ]
)
reft_model = get_reft_model(model, reft_config)
equal_start(reft_model, scale=0.05)

texts = ["the dog runs today", "the cat sleeps here", "a bird flies now"]
ids = [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts]
train_dataset = datasets.Dataset.from_dict(
    {
        "input_ids": [i.tolist() for i in ids],
        "labels": [i.tolist() for i in ids],
        "subspaces": [[FULL_SUBSPACE] * len(layers)] * len(ids),
    }
)
collate = transformers.DataCollatorForSeq2Seq(
    tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
)
arguments = training_arguments(
    max_steps=5, learning_rate=1e-3, per_device_train_batch_size=3, remove_unused_columns=False
)
trainer = ReftTrainerForCausalLM(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    train_dataset=train_dataset,
    eval_dataset=None,
    data_collator=PaddingCollator(tokenizer, collate),
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()
reft_model.eval()
reft_model.training = False


def perplexity(everywhere):
    """The loss of one text, all of whose tokens are labels."""
    input_ids = tokenizer("the dog swims in the sea", return_tensors="pt")["input_ids"].to(device)
    where = None if everywhere else {"sources->base": (None, [[[0]]] * len(layers))}
    with torch.no_grad():
        _, outputs = reft_model(
            {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
            unit_locations=where,
            labels=input_ids.clone().detach(),
            subspaces=[[FULL_SUBSPACE]] * len(layers),
        )
    return float(outputs.loss)


def generate(everywhere, rows=2):
    """The same prompt in each row; `[[[0]]]` and one list of directions are for one row alone."""
    prompt = tokenizer(["I can not tell"] * (1 if everywhere else rows), return_tensors="pt")
    where = None if everywhere else {"sources->base": (None, [[[0]]] * len(layers))}
    _, response = reft_model.generate(
        prompt.to(device),
        unit_locations=where,
        subspaces=[[FULL_SUBSPACE]] * len(layers),
        intervene_on_prompt=True,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        early_stopping=True,
        pad_token_id=tokenizer.eos_token_id,
    )
    return plain(response)


for coefficient in [0.0, 1.0, -1.0, 6.0]:
    for layer in layers:
        key = f"layer_{layer}_comp_block_output_unit_pos_nunit_1#0"
        intervention = first_of(reft_model.interventions[key])
        intervention.subspace_coeff = coefficient * torch.ones(low_rank).to(device)
    for everywhere in [True, False]:
        where = "everywhere" if everywhere else "at the first token"
        numbers[f"loss, {coefficient}, {where}"] = perplexity(everywhere)
        numbers[f"ids, {coefficient}, {where}"] = generate(everywhere)
