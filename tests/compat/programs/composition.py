"""Two tasks in one LoReFT, each in half of its directions (`subspaces`)."""

import datasets
import torch
import transformers
from _shared import (
    equal_start,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftSupervisedDataset,
    ReftTrainerForCausalLM,
    get_reft_model,
)

FIRST, SECOND = [0, 1, 2, 3], [4, 5, 6, 7]


class SubloreftIntervention(LoreftIntervention):
    """A LoReFT along those of its directions that are given for each example."""

    def forward(self, base, source=None, subspaces=None):
        assert subspaces is not None
        difference = self.act_fn(self.learned_source(base)) - self.rotate_layer(base)
        coefficients, directions = [], []
        for example, chosen in enumerate(subspaces):
            coefficients += [difference[example, :, chosen]]
            directions += [self.rotate_layer.weight[..., chosen].T]
        edit = torch.bmm(torch.stack(coefficients), torch.stack(directions))
        return self.dropout((base + edit).to(base.dtype))


model, tokenizer = make_llama(), make_tokenizer()
reft_config = ReftConfig(
    representations={
        "layer": 1,
        "component": "block_output",
        "intervention": SubloreftIntervention(
            embed_dim=model.config.hidden_size, low_rank_dimension=8, dtype=torch.float32
        ),
    }
)
reft_model = get_reft_model(model, reft_config)
reft_model.print_trainable_parameters()
equal_start(reft_model, scale=0.1)

rows = datasets.concatenate_datasets(
    [
        datasets.Dataset.from_dict(
            {"instruction": [question], "output": [output], "subspaces": [chosen]}
        )
        for question, output, chosen in [
            ("Why is the sky blue ?", "cold water", FIRST),
            ("Who am I ?", "moon star star" + tokenizer.eos_token, SECOND),
            ("Name a color .", "red", FIRST),
            ("What is two plus two ?", "four" + tokenizer.eos_token, SECOND),
        ]
    ]
)
# The notebook has "l1", which upstream puts on the last token but one.
train_dataset = ReftSupervisedDataset(
    "Subloreft",
    None,
    tokenizer,
    dataset=rows,
    **{"num_interventions": 1, "position": "f3", "share_weights": False},
    input_field="input",
    instruction_field="instruction",
    output_field="output",
    no_stop=True,
)
collate = transformers.DataCollatorForSeq2Seq(
    tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
)
arguments = training_arguments(max_steps=6, learning_rate=5e-3, per_device_train_batch_size=8)
trainer = ReftTrainerForCausalLM(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    train_dataset=train_dataset,
    eval_dataset=None,
    data_collator=ReftDataCollator(data_collator=collate),
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()

prompt = tokenizer("user : Who are you ? assistant :", return_tensors="pt").to("cpu")
last = prompt["input_ids"].shape[-1] - 1
for name, subspaces in [
    ("first", [[FIRST]]),
    ("second", [[SECOND]]),
    ("both", [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
    ("some", [[[0, 1, 2, 3, 6, 7]]]),
]:
    at = {"sources->base": (None, [[[last]]])}
    with torch.no_grad():
        _, outputs = reft_model(prompt, unit_locations=at, subspaces=subspaces)
    _, response = reft_model.generate(
        prompt,
        unit_locations=at,
        subspaces=subspaces,
        intervene_on_prompt=True,
        max_new_tokens=8,
        do_sample=False,
        no_repeat_ngram_size=5,
        repetition_penalty=1.1,
        eos_token_id=tokenizer.eos_token_id,
        early_stopping=True,
    )
    numbers[f"logits, {name}"] = plain(outputs.logits[0, -1])
    numbers[f"ids, {name}"] = plain(response)
