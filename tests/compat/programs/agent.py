"""Train and share: three layers, first and last tokens with weights of their own."""

import torch
from _shared import (
    equal_start,
    in_float32,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

import pyreft

model, tokenizer = make_llama(), make_tokenizer(2048)
tokenizer.add_special_tokens({"pad_token": "[PAD]"})
terminators = [tokenizer.eos_token_id]
# The notebook resizes the embeddings by drawing random rows; here the pad token's is zero.
model.resize_token_embeddings(len(tokenizer))
with torch.no_grad():
    model.get_input_embeddings().weight[-1] = 0
    model.get_output_embeddings().weight[-1] = 0

reft_config = pyreft.ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": 2,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=2, dtype=torch.float32
            ),
        }
        for layer in [0, 1, 2, 0, 1, 2]
    ]
)
reft_model = pyreft.get_reft_model(model, reft_config)
reft_model.set_device("cpu")
reft_model.print_trainable_parameters()
equal_start(reft_model, scale=0.1)

share_weights, positions = False, "f3+l3"
first_n, last_n = pyreft.parse_positions(positions)
template = "user : %s assistant :"
examples = [
    ["Why is the sky blue today ?", "cold water"],
    ["Who are you and who am I ?", "moon star star"],
]
data_module = pyreft.make_multiple_position_supervised_data_module(
    tokenizer,
    model,
    [template % e[0] for e in examples],
    [e[1] for e in examples],
    positions=positions,
    num_interventions=len(reft_config.representations),
    share_weights=share_weights,
    nonstop=False,
)
arguments = training_arguments(
    num_train_epochs=6.0, per_device_train_batch_size=10, learning_rate=4e-3, logging_steps=20
)
trainer = pyreft.ReftTrainerForCausalLM(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
losses = keep_losses(trainer)
_ = trainer.train()


def answer(reft_model, instruction):
    prompt = tokenizer(template % instruction, return_tensors="pt").to("cpu")
    unit_locations = (
        torch.IntTensor(
            [
                pyreft.get_intervention_locations(
                    last_position=prompt["input_ids"].shape[-1],
                    first_n=first_n,
                    last_n=last_n,
                    pad_mode="last",
                    num_interventions=len(reft_config.representations),
                    share_weights=share_weights,
                )
            ]
        )
        .permute(1, 0, 2)
        .tolist()
    )
    _, response = reft_model.generate(
        prompt,
        unit_locations={"sources->base": (None, unit_locations)},
        intervene_on_prompt=True,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=terminators,
        early_stopping=True,
    )
    return plain(response)


numbers = {"losses": losses, "ids": answer(reft_model, "Can you Tell me about the sea ?")}
reft_model.set_device("cpu")
reft_model.save(save_directory="./reft_to_share")
shared = pyreft.ReftModel.load("./reft_to_share", model)
in_float32(shared, "./reft_to_share")
numbers["ids of the shared"] = answer(shared, "Can you Tell me about the sea ?")
