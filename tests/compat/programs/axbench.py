"""AxBench (stanfordnlp/axbench): ReFT as a baseline of steering, in its own loop.

One set of interventions is trained for each concept, its weights are stacked on disk, and one
intervention of AxBench's own reads them all; which concept is meant comes in `subspaces`, a dict.
"""

from pathlib import Path

import datasets
import torch
import transformers
from _shared import equal_start, first_of, make_llama, make_tokenizer, plain
from torch import nn
from torch.utils.data import DataLoader

import pyreft

try:
    from pyvene import (
        DistributedRepresentationIntervention,
        SourcelessIntervention,
        TrainableIntervention,
    )
except ImportError:  # Without pyvene the same names are here.
    from pyreft.interventions import (
        DistributedRepresentationIntervention,
        SourcelessIntervention,
        TrainableIntervention,
    )

LAYERS, RANK, POSITIONS = [0, 2], 2, "f2+l2"


class ConceptReFTIntervention(
    SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    """A LoReFT of each of several concepts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        concepts, rank = kwargs["n_concepts"], kwargs["low_rank_dimension"]
        self.W_proj = nn.Parameter(torch.zeros(concepts, self.embed_dim, rank))
        self.W_source = nn.Parameter(torch.zeros(concepts, self.embed_dim, rank))
        self.b_source = nn.Parameter(torch.zeros(concepts, rank))

    def forward(self, base, source=None, subspaces=None):
        projection = self.W_proj[subspaces["idx"]]
        weight = self.W_source[subspaces["idx"]]
        bias = self.b_source[subspaces["idx"]].unsqueeze(dim=1)
        difference = torch.bmm(base, weight) + bias - torch.bmm(base.float(), projection)
        return (base + torch.bmm(difference, projection.transpose(-1, -2))).to(base.dtype)


def wrap(model, make_intervention):
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": RANK,
                "intervention": make_intervention(),
            }
            for layer in LAYERS
        ]
    )
    ax_model = pyreft.get_reft_model(model, config)
    ax_model.set_device("cpu")
    return ax_model


def train(ax_model, tokenizer, model, inputs, outputs, epochs=4):
    data_module = pyreft.make_multiple_position_supervised_data_module(
        tokenizer,
        model,
        inputs,
        outputs,
        positions=POSITIONS,
        num_interventions=len(LAYERS),
        nonstop=True,
        share_weights=True,
    )
    loader = DataLoader(
        data_module["train_dataset"],
        shuffle=True,
        batch_size=4,
        collate_fn=data_module["data_collator"],
    )
    optimizer = torch.optim.AdamW(
        ax_model.parameters(), lr=5e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8
    )
    schedule = transformers.get_scheduler(
        "linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=epochs * len(loader)
    )
    losses = []
    for _ in range(epochs):
        for batch in loader:
            inputs = {key: value.to("cpu") for key, value in batch.items()}
            locations = inputs["intervention_locations"].permute(1, 0, 2).tolist()
            _, outputs = ax_model.forward(
                base={
                    "input_ids": inputs["input_ids"],
                    "attention_mask": inputs["attention_mask"],
                },
                unit_locations={"sources->base": (None, locations)},
                labels=inputs["labels"],
                use_cache=False,
            )
            loss = outputs.loss.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ax_model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    return losses


def save(ax_model, folder):
    """Stack the weights of this concept on those of the concepts before it."""
    weight_file, bias_file = folder / "LoReFT_weight.pt", folder / "LoReFT_bias.pt"
    weights = torch.load(weight_file) if weight_file.exists() else {}
    biases = torch.load(bias_file) if bias_file.exists() else {}
    for name, intervention in ax_model.interventions.items():
        state = first_of(intervention).state_dict()
        parts = {"proj_weight": state["rotate_layer"], "source_weight": state["weight"].T}
        for part, tensor in parts.items():
            old = [weights[f"{name}.{part}"]] if f"{name}.{part}" in weights else []
            weights[f"{name}.{part}"] = torch.cat([*old, tensor.cpu().unsqueeze(dim=0)], dim=0)
        old = [biases[f"{name}.bias"]] if f"{name}.bias" in biases else []
        biases[f"{name}.bias"] = torch.cat([*old, state["bias"].cpu().unsqueeze(dim=0)], dim=0)
    torch.save(weights, weight_file)
    torch.save(biases, bias_file)


def load(model, folder):
    weights = torch.load(folder / "LoReFT_weight.pt")
    biases = torch.load(folder / "LoReFT_bias.pt")
    concepts = next(iter(weights.values())).shape[0]
    ax_model = wrap(
        model,
        lambda: ConceptReFTIntervention(
            n_concepts=concepts, embed_dim=model.config.hidden_size, low_rank_dimension=RANK
        ),
    )
    for name, intervention in ax_model.interventions.items():
        first_of(intervention).W_proj.data = weights[f"{name}.proj_weight"]
        first_of(intervention).W_source.data = weights[f"{name}.source_weight"]
        first_of(intervention).b_source.data = biases[f"{name}.bias"]
    ax_model.set_device("cpu")
    for _, intervention in ax_model.interventions.items():
        _ = first_of(intervention).eval()
    return ax_model


def collate_left(tokenizer, instances):
    """A pad token before each text, and more at the left up to the longest of the batch."""
    width = max(len(item["input_ids"]) for item in instances)
    for item in instances:
        missing = width - len(item["input_ids"])
        item["intervention_locations"] = item["intervention_locations"] + 1 + missing
        padding = torch.full((missing + 1,), tokenizer.pad_token_id)
        item["input_ids"] = torch.cat((padding, item["input_ids"])).int()
        item["attention_mask"] = (item["input_ids"] != tokenizer.pad_token_id).int()
    return transformers.DefaultDataCollator(return_tensors="pt")(instances)


@torch.no_grad()
def steer(ax_model, tokenizer, prompts, concepts):
    ids = [tokenizer(prompt, return_tensors="pt")["input_ids"][0] for prompt in prompts]
    first_n, last_n = pyreft.parse_positions(POSITIONS)
    locations = [
        pyreft.get_intervention_locations(
            last_position=len(one),
            first_n=first_n,
            last_n=last_n,
            pad_mode="first",
            num_interventions=len(LAYERS),
            share_weights=True,
        )
        for one in ids
    ]
    data = datasets.Dataset.from_dict(
        {"input_ids": [one.tolist() for one in ids], "intervention_locations": locations}
    )
    data.set_format(type="torch", columns=["input_ids", "intervention_locations"])
    loader = DataLoader(
        data,
        shuffle=False,
        batch_size=len(ids),
        collate_fn=lambda instances: collate_left(tokenizer, instances),
    )
    (inputs,) = loader
    unit_locations = inputs["intervention_locations"].permute(1, 0, 2).tolist()
    _, generations = ax_model.generate(
        {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
        unit_locations={"sources->base": (None, unit_locations)},
        intervene_on_prompt=True,
        subspaces=[{"idx": torch.tensor(concepts)}] * len(LAYERS),
        max_new_tokens=6,
        do_sample=False,
    )
    return [
        token
        for generation, one in zip(generations, inputs["input_ids"], strict=True)
        for token in generation[len(one) :].tolist()
    ]


model, tokenizer, folder = make_llama(), make_tokenizer(1024), Path(".")
prompts = [
    "user : Why is the sky blue today ? assistant :",
    "user : Name a color now . assistant :",
]
numbers = {}
for concept, outputs in enumerate([["sun moon", "sun star"], ["cold water", "warm sea"]]):
    ax_model = wrap(
        model,
        lambda: pyreft.LoreftIntervention(
            embed_dim=model.config.hidden_size, low_rank_dimension=RANK, dtype=torch.float32
        ),
    )
    ax_model.print_trainable_parameters()
    equal_start(ax_model, seed=concept)
    numbers[f"losses of concept {concept}"] = train(ax_model, tokenizer, model, prompts, outputs)
    save(ax_model, folder)
ax_model = load(make_llama(), folder)
first = first_of(next(iter(ax_model.interventions.values())))
numbers["first projection"] = plain(first.W_proj[0])
for concepts in [[0, 1], [1, 1]]:
    numbers[f"ids of concepts {concepts}"] = steer(ax_model, tokenizer, prompts, concepts)
