"""The evaluation of the LoReFT script: batches padded at the left, positions moved by hand.

The data set's positions count a pad token before each text. The script adds the column of the
first token of each row and takes one off for that pad token, so that positions are columns of the
padded batch; and repeats them for each beam.
"""

import torch
from _shared import equal_start, make_llama, make_tokenizer
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftDataset,
    get_reft_model,
)

rows = [
    {"instruction": "Name a color and a cat .", "answer": "red"},
    {"instruction": "Why is the sky blue today and not red ?", "answer": "rain"},
    {"instruction": "Who are you and who am I ?", "answer": "moon"},
    {"instruction": "Tell me about rain and the sea .", "answer": "cold"},
]


class LoReftSupervisedDataset(ReftDataset):
    def preprocess(self, kwargs):
        self.raw_dataset, self.trigger_tokens, self.num_labels = None, None, None
        self.original_data_split = self.data_split
        self.test_split = kwargs["test_split"] if "test_split" in kwargs else None
        self.trigger_tokens = "assistant :"

    def postprocess(self, kwargs):
        self.raw_dataset = self.task_dataset

    def tokenize(self, data_item):
        result = {}
        prompt = f"user : {data_item['instruction']} assistant :"
        prompt_ids = self.tokenizer(
            prompt, max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )["input_ids"][0]
        if self.original_data_split == "train":
            text = f"{prompt} {data_item['answer']}{self.tokenizer.eos_token}"
            ids = self.tokenizer(text, return_tensors="pt")["input_ids"][0]
            labels = ids.clone()
            labels[: len(prompt_ids)] = -100
            result["input_ids"], result["labels"] = ids, labels
        else:
            result["input_ids"] = prompt_ids
        return result, len(prompt_ids)


def make_model(layers, rank=4):
    model = make_llama()
    representations = [
        {
            "layer": layer,
            "component": "block_output",
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
    return equal_start(get_reft_model(model, ReftConfig(representations=representations)))


def evaluate(reft_model, tokenizer, num_beams, batch_size=4):
    """The ids that each row generates, without its padding."""
    data = LoReftSupervisedDataset(
        "own",
        None,
        tokenizer,
        data_split="test",
        dataset=rows,
        **{"num_interventions": len(layers), "position": "f2+l2", "share_weights": False},
    )
    tokenizer.padding_side = "left"
    collate = ReftDataCollator(
        data_collator=DataCollatorForSeq2Seq(
            tokenizer=tokenizer,
            model=reft_model.model,
            label_pad_token_id=-100,
            padding="longest",
            max_length=2048,
        )
    )
    generated = []
    for inputs in DataLoader(data, shuffle=False, batch_size=batch_size, collate_fn=collate):
        for key, value in inputs.items():
            if value is not None and isinstance(value, torch.Tensor):
                inputs[key] = value.to("cpu")
        locations = inputs["intervention_locations"].permute(1, 0, 2)
        left_padding = (inputs["input_ids"] == tokenizer.bos_token_id).nonzero(as_tuple=True)[1]
        if left_padding.numel() > 0:
            left_padding = left_padding.reshape(1, -1, 1).to("cpu")
            locations += left_padding
            locations -= 1  # for the pad token before each text
        locations = locations.repeat_interleave(num_beams, dim=1).tolist()
        arguments = {
            "base": {
                "input_ids": inputs["input_ids"],
                "attention_mask": inputs["attention_mask"],
            },
            "unit_locations": {"sources->base": (None, locations)},
            "intervene_on_prompt": True,
            "eos_token_id": tokenizer.eos_token_id,
            "early_stopping": True,
            "max_new_tokens": 6,
            "num_beams": num_beams,
            "do_sample": False,
        }
        _, response = reft_model.generate(**arguments)
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        for row, text in zip(inputs["id"].tolist(), texts, strict=True):
            answer = text[text.find(data.trigger_tokens) + len(data.trigger_tokens) :].lstrip()
            print(data.raw_dataset[row]["instruction"], "->", answer)
        width = inputs["input_ids"].shape[1]
        generated += response[:, width:].flatten().tolist()
    return generated


layers = [0, 2, 0, 2]
reft_model = make_model(layers)
reft_model.model.eval()
numbers = {}
with torch.no_grad():
    for num_beams in [1, 3]:
        ids = evaluate(reft_model, make_tokenizer(), num_beams)
        numbers[f"ids, {num_beams} beams"] = ids
    numbers["ids, one row at a time"] = evaluate(reft_model, make_tokenizer(), 1, batch_size=1)
