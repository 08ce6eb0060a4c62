"""The loss at each of 20 steps, of three kinds on the data that upstream's functions make.

Full batches, AdamW without decay, a linear schedule. Two runs on one set: upstream's prompts are
long enough here for `f2+l2`, so that its filling for short prompts is in none of them.
"""

import torch
import transformers
from _shared import equal_start, keep_losses, make_llama, make_tokenizer, training_arguments

import pyreft

prompts = [
    "user : What is the color of the sky ? assistant :",
    "user : Why is the sea blue today ? assistant :",
    "user : Tell me about rain and the moon . assistant :",
    "user : Plan a trip to the sea now . assistant :",
]
answers = ["blue", "cold water", "moon star star stone", "not today"]
RATES = {"loreft": 1e-2, "direft": 4e-3, "nodireft": 4e-3}


def make_intervention(kind, rank=4):
    arguments = {"embed_dim": 64, "low_rank_dimension": rank, "dtype": torch.float32}
    if kind == "nodireft":
        return pyreft.NodireftIntervention(**arguments, add_bias=False)
    classes = {"loreft": pyreft.LoreftIntervention, "direft": pyreft.DireftIntervention}
    return classes[kind](**arguments)


def learn(kind, layers, make_data):
    """20 steps from the same start; `make_data` is given a tokenizer and the base model."""
    model, tokenizer = make_llama(), make_tokenizer()
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": make_intervention(kind),
            }
            for layer in layers
        ]
    )
    reft_model = equal_start(pyreft.get_reft_model(model, config), scale=0.1)
    arguments = training_arguments(
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=RATES[kind],
        weight_decay=0.0,
        lr_scheduler_type="linear",
        remove_unused_columns=False,
    )
    trainer = pyreft.ReftTrainerForCausalLM(
        model=reft_model, tokenizer=tokenizer, args=arguments, **make_data(tokenizer, model)
    )
    losses = keep_losses(trainer)
    trainer.train()
    return losses


def last_position(tokenizer, model):
    return pyreft.make_last_position_supervised_data_module(
        tokenizer, model, prompts, answers, num_interventions=2
    )


def shared_positions(tokenizer, model):
    return pyreft.make_multiple_position_supervised_data_module(
        tokenizer,
        model,
        prompts,
        answers,
        positions="f2+l2",
        num_interventions=2,
        share_weights=True,
        nonstop=True,
    )


def separate_positions(tokenizer, model):
    return pyreft.make_multiple_position_supervised_data_module(
        tokenizer, model, prompts, answers, positions="f1+l1", num_interventions=4
    )


class PromptDataset(pyreft.ReftDataset):
    """A user's data set. Its last position is the last token of the prompt, in both releases.

    Upstream puts a pad token before each text where `pad_mode` is "first", ours does not.
    """

    def tokenize(self, data_item):
        prompt = self.tokenizer(data_item["prompt"], return_tensors="pt")["input_ids"][0]
        text = data_item["prompt"] + " " + data_item["answer"] + self.tokenizer.eos_token
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"][0]
        labels = ids.clone()
        labels[: len(prompt)] = -100
        return {"input_ids": ids, "labels": labels}, len(prompt)


class PaddedDataset(PromptDataset):
    """One that puts the pad token before each text itself, as some users' own do."""

    def preprocess(self, kwargs):
        self.pad_mode = "none"

    def compute_intervention_and_subspaces(self, id, data_item, result, last_position, **kwargs):
        locations = self.get_intervention_locations(
            last_position=last_position,
            first_n=self.first_n,
            last_n=self.last_n,
            pad_mode="first",
            **kwargs,
        )
        pad, hidden = self.tokenizer.pad_token_id, -100
        result["input_ids"] = torch.cat([torch.tensor([pad]), result["input_ids"]])
        result["labels"] = torch.cat([torch.tensor([hidden]), result["labels"]])
        result["intervention_locations"] = (torch.IntTensor(locations) + 1).tolist()
        result["attention_mask"] = (result["input_ids"] != pad).int()
        result["id"] = id
        return result


def of_dataset(cls):
    def make(tokenizer, model):
        items = [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        data = cls(
            "own",
            None,
            tokenizer,
            dataset=items,
            **{"num_interventions": 4, "position": "f2+l2", "share_weights": False},
        )
        collate = transformers.DataCollatorForSeq2Seq(
            tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
        )
        return {"train_dataset": data, "data_collator": pyreft.ReftDataCollator(collate)}

    return make


numbers = {}
for kind in RATES:
    numbers[f"{kind}, last position"] = learn(kind, [0, 2], last_position)
    numbers[f"{kind}, shared"] = learn(kind, [0, 2], shared_positions)
    numbers[f"{kind}, separate"] = learn(kind, [0, 2, 0, 2], separate_positions)
    numbers[f"{kind}, data set"] = learn(kind, [0, 2, 0, 2], of_dataset(PromptDataset))
    numbers[f"{kind}, padded data set"] = learn(kind, [0, 2, 0, 2], of_dataset(PaddedDataset))
