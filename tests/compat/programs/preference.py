"""Refusals of manipulation: `ReftPreferenceDataset`, whose labels are the chosen answer."""

import json

import torch
from _shared import (
    equal_start,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)
from transformers import DataCollatorForSeq2Seq

import pyreft

# Answers of a pair are equally long. In a pair that is not, ours leaves out labels that have no
# input token beside them, where upstream pads the input.
rows = [
    {
        "instruction": "Tell me about rain .",
        "input": "",
        "chosen_output": "cold water",
        "rejected_output": "red dog",
    },
    {
        "instruction": "Name the capital .",
        "input": "italy",
        "chosen_output": "rome now",
        "rejected_output": "bad plot",
    },
]
with open("preference_data_train.json", "w") as file:
    json.dump(rows, file)


def setup(layers):
    model, tokenizer = make_llama(), make_tokenizer()
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
                ),
            }
            for layer in layers
        ]
    )
    return equal_start(pyreft.get_reft_model(model, config)), tokenizer, model


layers = [1]
reft_model, tokenizer, base_model = setup(layers)
train_dataset = pyreft.ReftPreferenceDataset(
    task="manipulation_refusal",
    data_path="preference_data_train.json",
    tokenizer=tokenizer,
    data_split="train",
    num_interventions=len(layers),
    position="f1+l1",
    share_weights=True,
    input_field="input",
    instruction_field="instruction",
    chosen_output_field="chosen_output",
    rejected_output_field="rejected_output",
)
collate = DataCollatorForSeq2Seq(
    tokenizer=tokenizer, model=base_model, label_pad_token_id=-100, padding="longest"
)
arguments = training_arguments(
    num_train_epochs=5, per_device_train_batch_size=4, learning_rate=4e-3, logging_steps=10
)
trainer = pyreft.ReftTrainerForCausalLM(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    train_dataset=train_dataset,
    data_collator=pyreft.ReftDataCollator(data_collator=collate),
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()
reft_model.save_intervention("./manipulation_reft_model")

# The evaluation: a model of its own, whose weights are read file by file.
evaluated, tokenizer, _ = setup(layers)
if trainer.args.use_cpu and hasattr(evaluated, "load_weights"):
    evaluated.load_intervention("./manipulation_reft_model", include_model=False)
else:  # upstream's `load_intervention` needs a GPU
    for key, intervention in evaluated.interventions.items():
        state = torch.load(f"./manipulation_reft_model/intkey_{key}.bin")
        intervention.load_state_dict(state)
prompt = tokenizer("Below is an instruction . ### Response :", return_tensors="pt").to("cpu")
last = prompt["input_ids"].shape[-1] - 1
with torch.no_grad():
    _, response = evaluated.generate(
        prompt,
        unit_locations={"sources->base": (None, [[[0, last]]] * len(layers))},
        intervene_on_prompt=True,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
    )
numbers["ids"] = plain(response)
