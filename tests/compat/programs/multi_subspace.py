"""Commonsense tasks, each in a part of one adapter: training, and an evaluation with left padding.

Positions are columns of the padded batch here: the first of each row is where its mask begins.
"""

import datasets
import torch
from _shared import (
    equal_start,
    is_ours,
    keep_losses,
    make_llama,
    make_tokenizer,
    training_arguments,
)
from transformers import DataCollatorForSeq2Seq

from pyreft import (
    NodireftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftSupervisedDataset,
    ReftTrainerForCausalLM,
    TaskType,
    get_reft_model,
)

assert TaskType.CAUSAL_LM
TARGET_LAYERS, RANK, POSITIONS = [0, 1, 2], 4, 3
model, tokenizer = make_llama(), make_tokenizer()


def wrap():
    """Without `low_rank_dimension` in the representations."""
    config = ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "intervention": NodireftIntervention(
                    embed_dim=model.config.hidden_size,
                    low_rank_dimension=RANK,
                    add_bias=False,
                    dtype=torch.float32,
                ),
            }
            for layer in TARGET_LAYERS
        ]
    )
    return get_reft_model(model, config)


reft_model = equal_start(wrap(), scale=0.1)
rows = datasets.Dataset.from_dict(
    {
        "instruction": ["Why is the sky blue ?", "Name a color ."],
        "input": ["", ""],
        "output": ["cold water", "red"],
    }
)
train_dataset = ReftSupervisedDataset(
    "Subloreft",
    None,
    tokenizer,
    dataset=rows,
    **{"num_interventions": len(TARGET_LAYERS), "position": "f3", "share_weights": True},
    input_field="input",
    instruction_field="instruction",
    output_field="output",
    no_stop=True,
)
collate = DataCollatorForSeq2Seq(
    tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
)
trainer = ReftTrainerForCausalLM(
    model=reft_model,
    tokenizer=tokenizer,
    args=training_arguments(max_steps=5, learning_rate=5e-3, per_device_train_batch_size=8),
    train_dataset=train_dataset,
    eval_dataset=None,
    data_collator=ReftDataCollator(data_collator=collate),
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()
reft_model.save_intervention("./weights", include_model=True)

evaluated = wrap()
if is_ours():
    evaluated.load_intervention("./weights", include_model=True)
else:  # upstream's needs a GPU
    for key, intervention in evaluated.interventions.items():
        intervention.load_state_dict(torch.load(f"./weights/intkey_{key}.bin"))

tokenizer.padding_side = "left"
instructions = ["Why is the sky blue and cold today ?", "Name a color .", "Who am I now ?"]
prompts = [f"### Instruction : {one} ### Response :" for one in instructions]
inputs = tokenizer(prompts, return_tensors="pt", padding=True).to("cpu")
last = inputs["input_ids"].shape[-1] - 1
shift = inputs["attention_mask"].argmax(dim=1).unsqueeze(1)
prefix = torch.arange(POSITIONS).repeat(len(prompts), 1).to("cpu") + shift
suffix = torch.tensor([last - i for i in range(POSITIONS - 1, -1, -1)]).repeat(len(prompts), 1)
places = torch.cat([prefix, suffix.to("cpu")], dim=1)
with torch.no_grad():
    _, response = evaluated.generate(
        inputs,
        unit_locations={"sources->base": (None, [places.tolist()] * len(evaluated.interventions))},
        intervene_on_prompt=True,
        max_new_tokens=6,
        do_sample=False,
        no_repeat_ngram_size=5,
        repetition_penalty=1.2,
        eos_token_id=tokenizer.eos_token_id,
        early_stopping=True,
    )
print(tokenizer.batch_decode(response, skip_special_tokens=True))
numbers["ids"] = response[:, last + 1 :].flatten().tolist()
