"""Each of upstream's data sets in a short training, with positions that are the same in both.

Upstream puts a pad token first; its `l1` is the last token but one in some of these. So the
positions are the first tokens, and texts have no unknown words, which upstream takes for padding.
"""

import datasets
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
from pyreft.dataset import (
    ReftClassificationDataset,
    ReftDataCollator,
    ReftGenerationDataset,
    ReftRawDataset,
    ReftSupervisedDataset,
    make_last_position_supervised_chat_data_module,
)

LAYERS = [0, 2]
tokenizer = make_tokenizer()
rows = datasets.Dataset.from_dict(
    {
        "instruction": ["Why is the sky blue ?", "Name a color and a cat .", "Who am I today ?"],
        "input": ["", "red", ""],
        "output": [" cold water", " blue bird", " moon"],
    }
)
places = {"num_interventions": len(LAYERS), "position": "f2", "share_weights": True}


def learn(train_dataset, collator=None):
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
            for layer in LAYERS
        ]
    )
    reft_model = equal_start(pyreft.get_reft_model(model, config))
    collate = DataCollatorForSeq2Seq(
        tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
    )
    trainer = pyreft.ReftTrainerForCausalLM(
        model=reft_model,
        tokenizer=tokenizer,
        args=training_arguments(max_steps=3, learning_rate=5e-3, remove_unused_columns=False),
        train_dataset=train_dataset,
        data_collator=collator or ReftDataCollator(data_collator=collate),
    )
    losses = keep_losses(trainer)
    trainer.train()
    return losses


def tokens(train_dataset):
    """The ids of all examples, without the pad tokens that upstream puts first."""
    kept = [torch.as_tensor(item["input_ids"]) for item in train_dataset]
    return plain(torch.cat([ids[ids != tokenizer.pad_token_id] for ids in kept]))


numbers = {}
fields = {"input_field": "input", "instruction_field": "instruction", "output_field": "output"}
generation = {"prompt_field": "instruction", "completion_field": "output"}
classification = {"input_field": "instruction", "label_field": "instruction"}
for name, data in [
    ("raw", ReftRawDataset("own", None, tokenizer, dataset=rows, **places)),
    ("supervised", ReftSupervisedDataset("own", None, tokenizer, dataset=rows, **places, **fields)),
    (
        "generation",
        ReftGenerationDataset("own", None, tokenizer, dataset=rows, **places, **generation),
    ),
    (
        "classification",
        ReftClassificationDataset("own", None, tokenizer, dataset=rows, **places, **classification),
    ),
]:
    numbers[f"{name}, tokens"] = tokens([data[index] for index in range(len(data))])
    # In "classification" every token is a label: upstream's pad token has to predict the first.
    if name != "classification":
        numbers[f"{name}, losses"] = learn(data)

chat = make_last_position_supervised_chat_data_module(
    tokenizer, make_llama(), rows["instruction"], rows["output"], num_interventions=len(LAYERS)
)
numbers["chat, tokens"] = tokens(chat["train_dataset"])
numbers["chat, losses"] = learn(chat["train_dataset"], chat["data_collator"])
