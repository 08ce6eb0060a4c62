"""Summaries in a style: chat templates, weights read file by file, several answers for a prompt.

The positions of one row are given for a batch that holds the same prompt several times.
"""

import os

import torch
from _shared import (
    equal_start,
    first_of,
    is_ours,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

import pyreft

model, tokenizer = make_llama(), make_tokenizer(2048, begins_with_bos=False)


def make_config():
    return pyreft.ReftConfig(
        representations=[
            {
                "component": f"model.layers[{layer}].output",
                "low_rank_dimension": 4,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
                ),
            }
            for layer in [0, 2]
        ]
    )


def template(content, answer=None):
    messages = [{"role": "system", "content": "You are a helpful assistant ."}]
    messages += [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": answer}] if answer else []
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


reft_config = make_config()
reft_model = equal_start(pyreft.get_reft_model(model, reft_config))
pairs = [["Why is the sky blue ?", "cold water"], ["Name a color and a cat .", "red one"]]
data_module = pyreft.make_multiple_position_supervised_data_module(
    tokenizer,
    model,
    [template(question) for question, _ in pairs],
    [" assistant : " + answer for _, answer in pairs],
    positions="f1+l1",
    num_interventions=len(reft_config.representations),
    share_weights=True,
    nonstop=False,
)
trainer = pyreft.ReftTrainerForCausalLM(
    model=reft_model,
    tokenizer=tokenizer,
    args=training_arguments(
        num_train_epochs=5, learning_rate=4e-3, per_device_train_batch_size=10, logging_steps=1
    ),
    **data_module,
)
numbers = {"losses": keep_losses(trainer)}
_ = trainer.train()
reft_model.set_device("cpu")
reft_model.save(save_directory="./params")

# A new model, whose interventions are given what is in the files.
again = pyreft.get_reft_model(model, make_config())
read = 0
for key in list(again.interventions.keys()):
    path = os.path.join("./params", f"intkey_{key}.bin")
    if os.path.exists(path):
        first_of(again.interventions[key]).load_state_dict(torch.load(path))
        read += 1
if is_ours():  # which saves no .bin files by default
    again.load_intervention("./params", include_model=False)
else:
    assert read == 2
again.set_device("cpu")

inputs = tokenizer(template("Who are you and who am I ?"), return_tensors="pt").to("cpu")
first_n, last_n = pyreft.parse_positions("f1+l1")
unit_locations = (
    torch.IntTensor(
        [
            pyreft.get_intervention_locations(
                last_position=inputs["input_ids"].shape[-1],
                first_n=first_n,
                last_n=last_n,
                pad_mode="last",
                num_interventions=len(reft_config.representations),
                share_weights=True,
            )
        ]
    )
    .permute(1, 0, 2)
    .tolist()
)
for copies in [1, 3]:
    repeated = {key: value.repeat(copies, 1) for key, value in inputs.items()}
    _, response = again.generate(
        repeated,
        unit_locations={"sources->base": (None, unit_locations)},
        intervene_on_prompt=True,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id],
        early_stopping=True,
    )
    numbers[f"ids of {copies}"] = plain(response)
