"""Two sets of interventions against each other: a trainer whose loss is that of half the batch less
that of the other half, and switches that say which set is trainable.
"""

import torch
from _shared import (
    equal_start,
    first_of,
    keep_losses,
    make_gpt2,
    make_tokenizer,
    plain,
    training_arguments,
)
from datasets import Dataset
from torch.utils.data import DataLoader

import pyreft as pr


class ReftAdversarialTrainer(pr.ReftTrainer):
    def compute_loss(self, intervenable, inputs, return_outputs=False):
        """The first half of a batch is wanted, the second is not."""
        wanted = {key: value[: len(value) // 2] for key, value in inputs.items()}
        unwanted = {key: value[len(value) // 2 :] for key, value in inputs.items()}
        wanted_loss = super().compute_loss(intervenable, wanted, return_outputs)
        unwanted_loss = super().compute_loss(intervenable, unwanted, return_outputs)
        if return_outputs:
            return wanted_loss[0] - unwanted_loss[0], wanted_loss[1]
        return wanted_loss - unwanted_loss


class ReftAdversarialTrainerForCausalLM(ReftAdversarialTrainer):
    def get_train_dataloader(self):
        return DataLoader(
            self.train_dataset,
            shuffle=False,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
        )


wanted = [["Who are you ?", "sun moon"], ["Why is the sky blue ?", "cold water"]]
unwanted = [["Who are you ?", "no answer"], ["Why is the sky blue ?", "we will not"]]
model, tokenizer = make_gpt2(), make_tokenizer(128, begins_with_bos=False)
# Layers as strings, as they come from the command line.
first_layers, second_layers = "2".split(";"), "0".split(";")
reft_config = pr.ReftConfig(
    representations=[
        {
            "layer": int(layer),
            "component": "block_output",
            "low_rank_dimension": 2,
            "intervention": pr.NoreftIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=2,
                add_bias=False,
                dtype=torch.float32,
            ),
        }
        for layer in first_layers + second_layers
    ]
)
reft_model = equal_start(pr.get_reft_model(model, reft_config), scale=0.05)
first, second = (
    [
        first_of(reft_model.interventions[f"layer_{layer}_comp_block_output_unit_pos_nunit_1#0"])
        for layer in layers
    ]
    for layers in (first_layers, second_layers)
)


def make_data(examples):
    return pr.make_multiple_position_supervised_data_module(
        tokenizer,
        reft_model,
        [f"user : {question} assistant :" for question, _ in examples],
        [answer for _, answer in examples],
        positions="f1+l1",
        num_interventions=len(reft_model.representations),
        nonstop=True,
        share_weights=True,
    )


data, other = make_data(wanted), make_data(unwanted)
columns = ["input_ids", "intervention_locations", "labels"]


def combine(one, two):
    one, two = one["train_dataset"][0:2], two["train_dataset"][0:2]
    return Dataset.from_dict({name: list(one[name]) + list(two[name]) for name in columns})


def make_trainer(dataset):
    arguments = training_arguments(
        num_train_epochs=3.0, per_device_train_batch_size=4, learning_rate=4e-3
    )
    return ReftAdversarialTrainerForCausalLM(
        model=reft_model,
        tokenizer=tokenizer,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=None,
        data_collator=data["data_collator"],
        compute_metrics=None,
    )


def switch(adversarial):
    for intervention in second:
        for parameter in intervention.parameters():
            parameter.requires_grad = adversarial
    for intervention in first:
        for parameter in intervention.parameters():
            parameter.requires_grad = not adversarial


trainers = [make_trainer(combine(data, other)), make_trainer(combine(other, data))]
losses = [keep_losses(trainer) for trainer in trainers]
for adversarial, trainer in zip([False, True], trainers, strict=True):
    switch(adversarial)
    reft_model.zero_grad()
    trainer.train()

numbers = {"losses": losses[0], "losses of the other": losses[1]}
inputs = tokenizer("user : Who am I ? assistant :", return_tensors="pt").to(reft_model.get_device())
places = [0, inputs["input_ids"].shape[-1] - 1]
_, outputs = reft_model.generate(
    inputs,
    unit_locations={"sources->base": (None, [[places], [places]])},
    intervene_on_prompt=True,
    pad_token_id=tokenizer.pad_token_id,
    max_new_tokens=5,
    do_sample=False,
)
numbers["ids"] = plain(outputs)
# The script turns an intervention off by giving None for its positions, [[places], None]. Upstream
# edits every token then, and ours refuses it.
with torch.no_grad():
    _, outputs = reft_model(inputs, unit_locations={"sources->base": (None, [[places], [places]])})
numbers["logits"] = plain(outputs.logits[0, :, :20])
