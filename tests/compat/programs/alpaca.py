"""Instructions with inputs, in upstream's template; every layer, first and last tokens."""

import json
from dataclasses import dataclass, field
from typing import Optional

import transformers
from _shared import (
    equal_start,
    keep_losses,
    make_llama,
    make_tokenizer,
    training_arguments,
)

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftSupervisedDataset,
    ReftTrainer,
    get_reft_model,
)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    cache_dir: Optional[str] = field(default=None)
    optim: str = field(default="adamw_torch")
    layers: str = field(default="all")
    position: str = field(default="f1+l1")
    share_weights: bool = field(default=False)
    remove_unused_columns: bool = field(default=False)
    rank: int = field(default=1)
    max_n_train_example: int = field(default=None)


rows = [
    {"instruction": "Name a color .", "input": "", "output": "red"},
    {"instruction": "Name the capital .", "input": "france", "output": "paris"},
    {"instruction": "Tell me about rain .", "input": "", "output": "cold water"},
    {"instruction": "Name the capital .", "input": "italy", "output": "rome now"},
]
with open("rows.json", "w") as file:
    json.dump(rows, file)

# Upstream's `l1` in this data set is the last token but one: `f2` is the same token in both.
arguments = training_arguments(
    TrainingArguments, position="f2", rank=2, max_steps=5, per_device_train_batch_size=4
)
arguments.learning_rate = 4e-3
model, tokenizer = make_llama(), make_tokenizer(512)
layers = list(range(model.config.num_hidden_layers))
if "+" in arguments.position and not arguments.share_weights:
    layers += layers
representations = [
    {
        "layer": layer,
        "component": "block_output",
        "low_rank_dimension": arguments.rank,
        "intervention": LoreftIntervention(
            embed_dim=model.config.hidden_size,
            low_rank_dimension=arguments.rank,
            dtype=model.dtype,
        ),
    }
    for layer in layers
]
reft_model = get_reft_model(model, ReftConfig(representations=representations))
equal_start(reft_model)

train_dataset = ReftSupervisedDataset(
    "alpaca",
    "rows.json",
    tokenizer,
    data_split="train",
    seed=arguments.seed,
    max_n_example=arguments.max_n_train_example,
    input_field="input",
    instruction_field="instruction",
    output_field="output",
    **{
        "num_interventions": len(layers),
        "position": arguments.position,
        "share_weights": arguments.share_weights,
    },
)
collate = transformers.DataCollatorForSeq2Seq(
    tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
)
data = {"train_dataset": train_dataset, "eval_dataset": None}
trainer = ReftTrainer(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    data_collator=ReftDataCollator(data_collator=collate),
    **data,
)
losses = keep_losses(trainer)
trainer.train()
trainer.save_state()
trainer.save_model(output_dir=arguments.output_dir)

# The number of tokens that count; upstream's pad token before each text does not.
tokens = [int(train_dataset[i]["attention_mask"].sum()) for i in range(4)]
numbers = {"losses": losses, "tokens": tokens}
numbers["norms"] = [
    float(p.norm())
    for v in reft_model.interventions.values()
    for p in v.learned_source.parameters()
]
