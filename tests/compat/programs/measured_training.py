"""Trainers of users' own: one with a regularizer on upstream's loss, one that measures likelihood.

Both call the inherited `compute_loss`, whose outputs are the model's.
"""

import numpy as np
import torch
from _shared import (
    equal_start,
    is_ours,
    keep_losses,
    make_llama,
    make_tokenizer,
    training_arguments,
)

import pyreft
from pyreft import ReftTrainerForCausalLM
from pyreft.reft_trainer import ReftTrainer, make_data_collator, make_dataloader


class MaskedLoreft(pyreft.LoreftIntervention):
    """A LoReFT with a mask over its directions, which it keeps for the loss."""

    def __init__(self, layer_no, **kwargs):
        super().__init__(**kwargs)
        self.layer_no = layer_no
        self.mask_net = torch.nn.Linear(self.embed_dim, kwargs["low_rank_dimension"])
        self.dtype = self.rotate_layer.weight.dtype

    def forward(self, base, source=None, subspaces=None):
        edit = self.act_fn(self.learned_source(base)) - self.rotate_layer(base)
        self.mask_output = torch.sigmoid(self.mask_net(base.to(self.dtype)))
        self.subspaces = subspaces
        output = base + torch.matmul(edit * self.mask_output, self.rotate_layer.weight.T)
        return self.dropout(output.to(base.dtype))


class RegularizedTrainer(ReftTrainer):
    def compute_loss(self, intervenable, inputs, return_outputs=False, **kwargs):
        raw = super().compute_loss(intervenable, inputs, return_outputs=True, **kwargs)
        # Upstream returns the outputs twice, transformers the loss before them.
        loss, outputs = raw[0] if is_ours() else raw[0].loss, raw[1]
        penalty = 0.0
        if hasattr(intervenable, "interventions"):
            for intervention in intervenable.interventions.values():
                if isinstance(intervention, MaskedLoreft):
                    penalty = penalty + intervention.mask_output.mean()
        logits = outputs.logits[..., :-1, :].contiguous()
        labels = inputs["labels"][..., 1:].contiguous()
        again = torch.nn.CrossEntropyLoss()(logits.view(-1, logits.size(-1)), labels.view(-1))
        assert torch.allclose(loss, again, atol=1e-4)
        total = again + 0.5 * penalty
        return (total, outputs) if return_outputs else total


class RegularizedTrainerForCausalLM(RegularizedTrainer):
    def get_train_dataloader(self):
        return make_dataloader(
            self.train_dataset, self._train_batch_size, self.data_collator, shuffle=True
        )


class TrainerWithEvaluation(ReftTrainerForCausalLM):
    def get_eval_dataloader(self, eval_dataset=None):
        eval_dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        return make_dataloader(
            eval_dataset, self.args.per_device_eval_batch_size, self.data_collator, shuffle=False
        )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self.model.model.eval()
        for _, value in self.model.interventions.items():
            (value[0] if isinstance(value, (list, tuple)) else value).eval()
        total, tokens = 0.0, 0
        with torch.no_grad():
            for inputs in self.get_eval_dataloader(eval_dataset):
                for key, value in inputs.items():
                    if value is not None and isinstance(value, torch.Tensor):
                        inputs[key] = value.to(self.model.get_device())
                loss = self.compute_loss(self.model, inputs, return_outputs=False)
                count = (inputs["labels"] != -100).sum().item()
                total, tokens = total + loss.item() * count, tokens + count
        metrics = {f"{metric_key_prefix}_nll": total / tokens}
        metrics[f"{metric_key_prefix}_perplexity"] = np.exp(total / tokens)
        self.log(metrics)
        return metrics


tokenizer = make_tokenizer()
questions = ["Why is the sky blue ?", "Name a color .", "Who am I now ?"]
answers = ["cold water", "red", "moon star star"]


def make(cls, **own):
    """A model with an intervention at two layers, and what it learns from."""
    model = make_llama()
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": cls(
                    **({"layer_no": layer} if cls is MaskedLoreft else {}),
                    embed_dim=64,
                    low_rank_dimension=4,
                    dtype=torch.float32,
                ),
            }
            for layer in [0, 2]
        ]
    )
    reft_model = equal_start(pyreft.get_reft_model(model, config), scale=0.1)
    data_module = pyreft.make_last_position_supervised_data_module(
        tokenizer,
        model,
        [f"user : {question} assistant :" for question in questions],
        answers,
        num_interventions=2,
    )
    return reft_model, data_module


arguments = training_arguments(max_steps=5, learning_rate=5e-3, remove_unused_columns=False)
reft_model, data_module = make(MaskedLoreft)
for index, intervention in enumerate(reft_model.interventions.values()):
    with torch.no_grad():
        intervention.mask_net.weight.copy_(torch.sin(torch.arange(256.0) + index).view(4, 64) / 4)
        intervention.mask_net.bias.zero_()
trainer = RegularizedTrainerForCausalLM(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
numbers = {"regularized losses": keep_losses(trainer)}
trainer.train()

reft_model, data_module = make(pyreft.LoreftIntervention)
data_module["data_collator"] = make_data_collator(tokenizer, reft_model.model)
data_module["eval_dataset"] = data_module["train_dataset"]
trainer = TrainerWithEvaluation(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
before = trainer.evaluate()["eval_nll"]
numbers["losses"] = keep_losses(trainer)
trainer.train()
numbers["likelihood"] = [before, trainer.evaluate()["eval_nll"]]
