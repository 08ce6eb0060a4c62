"""Continual learning on the TRACE benchmark (REFT-CL): one LoReFT for each task seen so far.

The edits of the tasks are normalized and added, each with a coefficient that all layers share. The
base classes come from `pyreft.interventions`, and the class is known to no registry.
"""

import torch
from _shared import keep_losses, make_llama, make_tokenizer, plain, start, training_arguments
from torch import nn

from pyreft import (
    ReftConfig,
    ReftTrainerForCausalLM,
    get_reft_model,
    make_multiple_position_supervised_data_module,
)
from pyreft.interventions import (
    DistributedRepresentationIntervention,
    LoreftIntervention,
    SourcelessIntervention,
    TrainableIntervention,
)


class AlphaBank(nn.Module):
    def __init__(self, tasks):
        super().__init__()
        self.alphas = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(tasks)])


class ReftCLIntervention(
    SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    def __init__(self, **kwargs):
        tasks = kwargs["num_tasks"]
        # Plain attributes before torch's __init__.
        self.eps = float(kwargs.get("eps", 1e-6))
        self.low_rank_dimension = int(kwargs["low_rank_dimension"])
        self.act_fn_name = kwargs.get("act_fn", None)
        self.dtype = kwargs.get("dtype", torch.bfloat16)
        super().__init__(**kwargs, keep_last_dim=True)
        self._get_alpha = kwargs["get_alpha"]
        block = {
            "low_rank_dimension": self.low_rank_dimension,
            "dropout": 0.0,
            "act_fn": self.act_fn_name,
            "dtype": self.dtype,
            "embed_dim": self.embed_dim,  # A tensor: a buffer of pyvene's class.
        }
        self.tasks = nn.ModuleList([LoreftIntervention(**block) for _ in range(tasks)])
        self.output_dropout = nn.Identity()
        self.active_tasks = tasks

    def set_active_tasks(self, number):
        self.active_tasks = max(0, min(number, len(self.tasks)))

    def forward(self, base, source=None, subspaces=None):
        total = torch.zeros_like(base)
        for index in range(self.active_tasks):
            block = self.tasks[index]
            learned = block.act_fn(block.learned_source(base))
            edit = torch.matmul(learned - block.rotate_layer(base), block.rotate_layer.weight.T)
            length = torch.norm(edit.to(torch.float32), dim=-1, keepdim=True).clamp_min(self.eps)
            total = total + self._get_alpha(index) * (edit / length).to(base.dtype)
        return self.output_dropout(base + total)


TASKS, LAYERS, RANK = 2, [0, 2], 4
model, tokenizer, bank = make_llama(), make_tokenizer(), AlphaBank(TASKS)
# Upstream's `parameters()` has no module but the interventions and the base model: its trainer
# leaves these coefficients alone, and ours trains them.
bank.requires_grad_(False)
reft_config = ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": RANK,
            "intervention": ReftCLIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=RANK,
                num_tasks=TASKS,
                get_alpha=lambda index: bank.alphas[index],
                dtype=torch.float32,
            ),
        }
        for layer in LAYERS
    ]
)
reft_model = get_reft_model(model, reft_config)
reft_model.add_module("reftcl_alpha_bank", bank)
interventions = list(reft_model.interventions.values())
for one, intervention in enumerate(interventions):
    for index, block in enumerate(intervention.tasks):
        start(block, 0.3, 10 * one + index)

rounds = [(["What is two plus two ?", "Name a color ."], ["four", "red"])]
rounds += [(["Why is the sky blue ?", "Who are you ?"], ["cold water", "sun moon"])]
numbers = {}
for task, (questions, answers) in enumerate(rounds):
    for intervention in interventions:
        intervention.set_active_tasks(task + 1)
        for index, block in enumerate(intervention.tasks):
            block.requires_grad_(index == task)
    data_module = make_multiple_position_supervised_data_module(
        tokenizer,
        model,
        [f"user : {question} assistant :" for question in questions],
        answers,
        positions="f2+l2",
        num_interventions=len(LAYERS),
        share_weights=True,
    )
    arguments = training_arguments(max_steps=4, learning_rate=5e-3, lr_scheduler_type="constant")
    trainer = ReftTrainerForCausalLM(
        model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
    )
    numbers[f"losses of task {task}"] = keep_losses(trainer)
    trainer.train()

prompt = tokenizer("user : Name a color . assistant :", return_tensors="pt")
last = prompt["input_ids"].shape[-1] - 1
with torch.no_grad():
    _, outputs = reft_model(
        {"input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"]},
        unit_locations={"sources->base": (None, [[[0, 1, last - 1, last]]] * len(LAYERS))},
    )
numbers["logits"] = plain(outputs.logits[0, -1])
