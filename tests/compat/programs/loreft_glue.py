"""The classification part of the LoReFT script: RoBERTa, a pad token at the end of each text."""

import datasets
import numpy as np
import torch
from _shared import (
    equal_start,
    forget_gradients,
    keep_losses,
    make_roberta,
    make_tokenizer,
    plain,
    training_arguments,
)
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftDataset,
    ReftTrainerForSequenceClassification,
    TaskType,
    get_reft_model,
)

residual_stream_component_mapping = {"robertaformaskedlm": "roberta.encoder.layer[%s].output"}
rank, position, layers = 2, "f1", [0, 2]


class LoReftGLUEDataset(ReftDataset):
    def preprocess(self, kwargs):
        self.raw_dataset, self.trigger_tokens, self.num_labels = None, None, None
        self.pad_mode = "last"
        self.fields_to_pad = ["input_ids"]
        self.sentence1_key, self.sentence2_key = "sentence", None

    def postprocess(self, kwargs):
        self.num_labels = len(self.task_dataset.features["label"].names)

    def tokenize(self, data_item):
        ids = self.tokenizer(
            data_item[self.sentence1_key],
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"][0]
        return {"input_ids": ids, "labels": data_item["label"]}, len(ids)


rows = datasets.Dataset.from_dict(
    {
        "sentence": ["a great movie", "a bad plot", "a good star", "the movie is never good"],
        "label": [1, 0, 1, 0],
    },
    features=datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    ),
)
tokenizer = make_tokenizer(64)
train_dataset = LoReftGLUEDataset(
    "glue",
    "sst2",
    tokenizer,
    data_split="train",
    dataset=rows,
    **{"num_interventions": len(layers), "position": position, "share_weights": False},
)
model = make_roberta(num_labels=train_dataset.num_labels)
architecture = model.config.architectures[0].lower()
reft_config = ReftConfig(
    representations=[
        {
            "component": residual_stream_component_mapping[architecture] % layer,
            "low_rank_dimension": rank,
            "intervention": LoreftIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=rank,
                dropout=0.0,
                dtype=torch.float32,
                act_fn=None,
                device="cpu",
                add_bias=False,
            ),
        }
        for layer in layers
    ]
)
assert TaskType.SEQ_CLS == "SEQ_CLS"
reft_model = get_reft_model(model, reft_config)
forget_gradients(equal_start(reft_model, scale=0.1))
for parameter in reft_model.model.classifier.parameters():
    parameter.requires_grad = True
reft_model.model.train()
collate = ReftDataCollator(
    data_collator=DataCollatorWithPadding(tokenizer=tokenizer, padding="longest")
)
arguments = training_arguments(
    num_train_epochs=5,
    per_device_train_batch_size=4,
    learning_rate=4e-3,
    remove_unused_columns=False,
)
trainer = ReftTrainerForSequenceClassification(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    train_dataset=train_dataset,
    eval_dataset=None,
    data_collator=collate,
    compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()

# The evaluation of the script, which does not use the trainer's.
reft_model.model.eval()
logits, right = [], 0
for inputs in DataLoader(train_dataset, shuffle=False, batch_size=4, collate_fn=collate):
    locations = inputs["intervention_locations"].permute(1, 0, 2)
    with torch.no_grad():
        _, outputs = reft_model(
            {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
            unit_locations={"sources->base": (None, locations.tolist())},
        )
    right += int((outputs.logits.argmax(dim=-1) == inputs["labels"]).sum())
    logits += plain(outputs.logits)
numbers["logits"], numbers["right"] = logits, right
