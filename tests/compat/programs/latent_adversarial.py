"""Latent adversarial training of a classifier: a second intervention, which is the attack.

The attack has no parameters: in the loss, a perturbation is moved along its own gradient, and the
LoReFT learns on what comes out of it.
"""

import datasets
import numpy as np
import torch
from _shared import (
    keep_losses,
    make_neox_classifier,
    make_tokenizer,
    start,
    training_arguments,
)
from torch.nn import CrossEntropyLoss
from transformers import DataCollatorWithPadding
from transformers.trainer_utils import EvalPrediction, denumpify_detensorize

import pyreft
from pyreft import LoreftIntervention, ReftConfig
from pyreft.dataset import ReftDataCollator, ReftDataset
from pyreft.interventions import DistributedRepresentationIntervention, SourcelessIntervention
from pyreft.reft_model import ReftModel
from pyreft.reft_trainer import ReftTrainerForSequenceClassification, make_dataloader


class AdversarialIntervention(SourcelessIntervention, DistributedRepresentationIntervention):
    """Add a perturbation, zero at first, that keeps its gradient. It is not trainable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.delta = None

    def reset_delta(self):
        self.delta = None

    def forward(self, base, source=None, subspaces=None):
        if self.delta is None:
            self.delta = torch.zeros_like(base, requires_grad=True)
        elif not self.delta.requires_grad:
            self.delta.requires_grad_(True)
        return base + self.delta


class IntLabels(ReftDataset):
    def preprocess(self, kwargs):
        super().preprocess(kwargs)
        self.input_field, self.label_field = kwargs["input_field"], kwargs["label_field"]

    def tokenize(self, data_item):
        ids = self.tokenizer(
            data_item[self.input_field],
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"][0]
        label = torch.tensor([int(data_item[self.label_field])], dtype=torch.long)
        # Its own last position, the last token but one of the `l1` that follows.
        return {"input_ids": ids, "labels": label}, len(ids) - 1

    def compute_intervention_and_subspaces(self, id, data_item, result, last_position, **kwargs):
        locations = self.get_intervention_locations(
            last_position=last_position,
            first_n=self.first_n,
            last_n=self.last_n,
            pad_mode=self.pad_mode,
            **kwargs,
        )
        result["intervention_locations"] = torch.tensor(locations, dtype=torch.int)
        result["id"] = id
        return result


class AdversarialTrainer(ReftTrainerForSequenceClassification):
    def __init__(self, *args, attack=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.attack, self.adversary = attack, None
        for _, intervention in self.model.interventions.items():
            if isinstance(intervention, AdversarialIntervention):
                self.adversary = intervention

    def compute_loss(self, intervenable, inputs, return_outputs=False):
        if inputs["labels"].dim() == 2:
            inputs["labels"] = inputs["labels"].squeeze(1)
        labels = inputs["labels"]
        locations = inputs["intervention_locations"].permute(1, 0, 2).tolist()

        def run():
            _, outputs = intervenable(
                {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
                unit_locations={"sources->base": (None, locations)},
                labels=labels,
            )
            logits = outputs.logits.view(-1, self.model.model.num_labels)
            return CrossEntropyLoss()(logits, labels.view(-1)), outputs

        self.adversary.reset_delta()
        clean, outputs = run()
        self.adversary.reset_delta()
        steps, radius = self.attack
        for _ in range(steps):
            intervenable.zero_grad()
            loss, _ = run()
            loss.backward()
            delta = self.adversary.delta
            with torch.no_grad():
                delta.add_(2.5 * radius / steps * delta.grad.sign())
                delta.clamp_(-radius, radius)
                delta.grad.zero_()
                delta.requires_grad_(True)
        self.adversary.delta = self.adversary.delta.detach()
        intervenable.zero_grad()
        attacked, _ = run()
        self.adversary.reset_delta()
        total = clean + 0.5 * attacked
        if return_outputs:
            outputs.loss = total
            return total, outputs
        return total

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        self.model.model.eval()
        for _, value in self.model.interventions.items():
            for module in value if isinstance(value, (list, tuple)) else [value]:
                module.eval()
        self.adversary.reset_delta()
        loader = make_dataloader(
            eval_dataset, self.args.eval_batch_size, self.data_collator, shuffle=False
        )
        logits, labels = [], []
        with torch.no_grad():
            for inputs in loader:
                locations = inputs["intervention_locations"].permute(1, 0, 2).tolist()
                _, outputs = self.model(
                    {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
                    unit_locations={"sources->base": (None, locations)},
                    labels=inputs["labels"],
                )
                logits.append(outputs.logits)
                labels.append(inputs["labels"])
                self.adversary.reset_delta()
        predictions = EvalPrediction(predictions=torch.cat(logits), label_ids=torch.cat(labels))
        metrics = denumpify_detensorize(self.compute_metrics(predictions))
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def measure(p):
    right = np.mean(np.asarray(p.predictions).argmax(1) == np.asarray(p.label_ids).reshape(-1))
    return {"accuracy": float(right), "sum": float(np.asarray(p.predictions).sum())}


tokenizer = make_tokenizer(64)
rows = datasets.Dataset.from_dict(
    {
        "content": [
            "a great movie today",
            "a bad plot today",
            "a good star here",
            "never good now !",
        ],
        "clf_label": [1, 0, 1, 0],
    }
)
data = IntLabels(
    task="own",
    data_path=None,
    tokenizer=tokenizer,
    data_split="train",
    dataset=rows,
    position="l1",
    num_interventions=2,
    input_field="content",
    label_field="clf_label",
)
model = make_neox_classifier()
model.config.pad_token_id = tokenizer.pad_token_id
reft_config = ReftConfig(
    representations=[
        {
            "layer": 2,
            "component": "gpt_neox.layers[1].output",
            "low_rank_dimension": 4,
            "intervention": LoreftIntervention(
                embed_dim=64, low_rank_dimension=4, dtype=torch.float32, dropout=0.0, act_fn=None
            ),
        },
        {
            "layer": 1,
            "component": "gpt_neox.layers[0].output",
            "intervention": AdversarialIntervention(embed_dim=64),
        },
    ]
)
reft_model = pyreft.get_reft_model(model, reft_config, set_device=True, disable_model_grads=True)
assert isinstance(reft_model, ReftModel)
start(next(iter(reft_model.interventions.values())), 0.1)
arguments = training_arguments(
    max_steps=4, per_device_train_batch_size=4, learning_rate=4e-3, remove_unused_columns=False
)
trainer = AdversarialTrainer(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    train_dataset=data,
    eval_dataset=data,
    data_collator=ReftDataCollator(
        data_collator=DataCollatorWithPadding(tokenizer=tokenizer, padding="longest")
    ),
    compute_metrics=measure,
    attack=(3, 0.5),
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()
metrics = trainer.evaluate()
numbers |= {"accuracy": metrics["eval_accuracy"], "logits": metrics["eval_sum"]}
reft_model.save_intervention("./adversarial", include_model=False)
