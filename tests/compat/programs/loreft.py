"""The script of the paper's experiments: each kind in turn, from command line to results.

With `args.json` in the output directory before the model is saved there.
"""

import argparse
import json
import os

import torch
from _shared import (
    equal_start,
    first_of,
    keep_losses,
    make_llama,
    make_tokenizer,
    training_arguments,
)
from transformers import DataCollatorForSeq2Seq, set_seed

from pyreft import (
    ConsreftIntervention,
    DireftIntervention,
    LobireftIntervention,
    LoreftIntervention,
    NodireftIntervention,
    NoreftIntervention,
    ReftConfig,
    ReftDataCollator,
    ReftDataset,
    ReftTrainerForCausalLM,
    TaskType,
    get_reft_model,
)

intervention_mapping = {
    "NoreftIntervention": NoreftIntervention,
    "LoreftIntervention": LoreftIntervention,
    "ConsreftIntervention": ConsreftIntervention,
    "LobireftIntervention": LobireftIntervention,
    "DireftIntervention": DireftIntervention,
    "NodireftIntervention": NodireftIntervention,
}
rows = [
    {"instruction": "Why is the sky blue today ?", "output": "cold water"},
    {"instruction": "Who are you and who am I ?", "output": "moon star star"},
    {"instruction": "Name a color and a cat .", "output": "red"},
    {"instruction": "What is two plus two today ?", "output": "four"},
]


class LoReftSupervisedDataset(ReftDataset):
    def preprocess(self, kwargs):
        self.raw_dataset, self.trigger_tokens, self.num_labels = None, None, None
        self.test_split = kwargs["test_split"] if "test_split" in kwargs else None

    def tokenize(self, data_item):
        prompt = f"user : {data_item['instruction']} assistant :"
        limit = {"max_length": self.tokenizer.model_max_length, "truncation": True}
        prompt_ids = self.tokenizer(prompt, return_tensors="pt", **limit)["input_ids"][0]
        text = f"{prompt} {data_item['output']}{self.tokenizer.eos_token}"
        ids = self.tokenizer(text, return_tensors="pt", **limit)["input_ids"][0]
        labels = ids.clone()
        labels[: len(prompt_ids)] = -100
        return {"input_ids": ids, "labels": labels}, len(prompt_ids)


def finetune(args):
    set_seed(args.seed)
    layers = [int(layer) for layer in args.layers.split(";")]
    if "+" in args.position and not args.share_weights:
        layers += layers
    tokenizer = make_tokenizer(args.max_length)
    train_dataset = LoReftSupervisedDataset(
        "own",
        None,
        tokenizer,
        data_split="train",
        seed=args.seed,
        max_n_example=None,
        dataset=rows,
        **{
            "num_interventions": len(layers),
            "position": args.position,
            "share_weights": args.share_weights,
            "test_split": "validation",
        },
    )
    model = make_llama()
    config = model.config
    assert config.architectures[0].lower() == "llamaforcausallm"
    kind = intervention_mapping[args.type]
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": args.rank,
            "intervention": kind(
                embed_dim=config.hidden_size,
                low_rank_dimension=args.rank,
                dropout=args.dropout,
                dtype=torch.float32,
                act_fn=args.act_fn,
                device="cpu",
                add_bias=args.add_bias,
            ),
        }
        for layer in layers
    ]
    assert TaskType.CAUSAL_LM == "CAUSAL_LM"
    reft_model = get_reft_model(model, ReftConfig(representations=representations), set_device=True)
    equal_start(reft_model, scale=0.1)
    reft_model.print_trainable_parameters()
    reft_model.model.train()
    n_params = reft_model.count_parameters(include_model=False)
    n_params_with_model = reft_model.count_parameters(include_model=True)

    output_dir = f"{args.output_dir}/{args.type}"
    arguments = training_arguments(
        output_dir=output_dir,
        run_name=args.type,
        num_train_epochs=5,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=1,
        evaluation_strategy="no",
        metric_for_best_model=None,
        load_best_model_at_end=False,
        logging_strategy="steps",
        save_total_limit=1,
        logging_steps=1,
        lr_scheduler_type="linear",
        learning_rate=5e-3,
        weight_decay=0.0,
        seed=args.seed,
        remove_unused_columns=False,
    )
    collate = DataCollatorForSeq2Seq(
        tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
    )
    trainer = ReftTrainerForCausalLM(
        model=reft_model,
        tokenizer=tokenizer,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=None,
        data_collator=ReftDataCollator(data_collator=collate),
        compute_metrics=None,
    )
    losses = keep_losses(trainer)
    trainer.train()

    os.makedirs(output_dir, exist_ok=True)
    with open(f"{output_dir}/args.json", "w") as file:
        json.dump({**vars(args), "n_params": n_params}, file, indent=4)
    reft_model.save(output_dir)

    reft_model.model.eval()
    for _, intervention in reft_model.interventions.items():
        _ = first_of(intervention).eval()
    with open(f"{output_dir}/args.json") as file:
        assert json.load(file)["n_params"] == n_params
    return losses, [n_params, n_params_with_model]


parser = argparse.ArgumentParser()
parser.add_argument("-type", "--type", type=str)
parser.add_argument("-l", "--layers", type=str, default="0;2")
parser.add_argument("-r", "--rank", type=int, default=4)
parser.add_argument("-p", "--position", type=str, default="f2+l2")
parser.add_argument("-seed", "--seed", type=int, default=42)
parser.add_argument("-dropout", "--dropout", type=float, default=0.0)
parser.add_argument("-act_fn", "--act_fn", type=str, default=None)
parser.add_argument("-add_bias", "--add_bias", action="store_true")
parser.add_argument("-sw", "--share_weights", action="store_true")
parser.add_argument("-max_length", "--max_length", type=int, default=512)
parser.add_argument("-output_dir", "--output_dir", type=str, default="./official_results")

numbers = {}
for kind in intervention_mapping:
    flags = ["-type", kind]
    if kind == "NoreftIntervention":
        flags += ["-add_bias", "-act_fn", "tanh"]
    losses, counts = finetune(parser.parse_args(flags))
    numbers[kind] = losses
    numbers[f"{kind}, parameters"] = counts
numbers["shared"] = finetune(parser.parse_args(["-type", "LoreftIntervention", "-sw"]))[0]
