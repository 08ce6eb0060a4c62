"""Prompts as long as the tokenizer's limit, and longer: no token of the answer is left."""

import torch
from _shared import (
    equal_start,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

import pyreft

LIMIT = 10
prompts = [
    "user : Why is the sky ?",
    "user : Why is the sky blue today and",  # with <s> as long as the limit
    "user : Why is the sky blue today and cold and never red ?",
]
answers = [" cold water", " sun moon", " red"]
tokenizer = make_tokenizer(LIMIT)
lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
assert lengths == [8, LIMIT, 15], lengths


def learn(make_data, layers):
    model = make_llama()
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=64, low_rank_dimension=4, dtype=torch.float32
                ),
            }
            for layer in layers
        ]
    )
    reft_model = equal_start(pyreft.get_reft_model(model, config))
    trainer = pyreft.ReftTrainerForCausalLM(
        model=reft_model,
        tokenizer=tokenizer,
        args=training_arguments(max_steps=5, learning_rate=5e-3, per_device_train_batch_size=3),
        **make_data(model),
    )
    losses = keep_losses(trainer)
    trainer.train()
    return losses, reft_model


numbers = {}
numbers["last"], reft_model = learn(
    lambda model: pyreft.make_last_position_supervised_data_module(
        tokenizer, model, prompts, answers, num_interventions=2
    ),
    [0, 2],
)
numbers["first and last"], _ = learn(
    lambda model: pyreft.make_multiple_position_supervised_data_module(
        tokenizer, model, prompts, answers, positions="f2+l2", num_interventions=4
    ),
    [0, 2, 0, 2],
)
numbers["shared, no end of text"], _ = learn(
    lambda model: pyreft.make_multiple_position_supervised_data_module(
        tokenizer,
        model,
        prompts,
        answers,
        positions="f1+l3",
        num_interventions=2,
        share_weights=True,
        nonstop=True,
    ),
    [0, 2],
)
for index, prompt in enumerate(prompts):
    limit = {"max_length": LIMIT, "truncation": True}
    inputs = tokenizer(prompt, return_tensors="pt", **limit).to("cpu")
    last = inputs["input_ids"].shape[-1] - 1
    _, response = reft_model.generate(
        inputs,
        unit_locations={"sources->base": (None, [[[last]], [[last]]])},
        intervene_on_prompt=True,
        max_new_tokens=5,
        do_sample=False,
    )
    numbers[f"ids of prompt {index}"] = plain(response)
