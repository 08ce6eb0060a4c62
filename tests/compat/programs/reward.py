"""A reward model: a classifier with one label, whose head learns as well, on pairs of answers."""

from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from _shared import (
    equal_start,
    first_of,
    forget_gradients,
    keep_losses,
    make_llama,
    make_tokenizer,
    training_arguments,
)

from pyreft import (
    LoreftIntervention,
    ReftConfig,
    ReftRewardCollator,
    ReftRewardDataset,
    ReftTrainer,
    get_reft_model,
)


class ReftTrainerForRewardModelling(ReftTrainer):
    def compute_loss(self, intervenable, inputs, return_outputs=False):
        locations = inputs["intervention_locations"].permute(1, 0, 2).tolist()
        rewards = intervenable(
            {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
            unit_locations={"sources->base": (None, locations)},
            subspaces=None,
        )
        chosen_mask = torch.arange(inputs["input_ids"].shape[0]) % 2 == 0
        chosen = rewards[-1].logits[chosen_mask]
        rejected = rewards[-1].logits[~chosen_mask]
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        if return_outputs:
            return loss, {"rewards_chosen": chosen, "rewards_rejected": rejected}
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, reward = self.compute_loss(model, inputs, return_outputs=True)
        logits = (reward["rewards_chosen"] - reward["rewards_rejected"]).detach().cpu()
        return loss.detach().cpu(), logits, torch.ones_like(logits)


def compute_metrics(eval_pred):
    differences = eval_pred.predictions.reshape(-1)
    return {"accuracy": np.sum(differences > 0.0) / len(differences), "first": differences[0]}


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    layers: str = field(default="all")
    position: str = field(default="f1+l1")
    share_weights: bool = field(default=False)
    remove_unused_columns: bool = field(default=False)
    rank: int = field(default=1)


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def make_rows():
    """All texts are equally long.

    transformers 4.45 scores the last column of a batch once a text begins with a pad token, which
    upstream puts there: in a shorter text that column is padding.
    """
    questions = ["Why is the sky ?", "Who am I today ?", "Name a red color .", "Tell me now ! ?"]
    pairs = [("cold water", "red moon"), ("sun star", "dog cat"), ("red one", "cat two")]
    pairs += [("yes yes", "no no")]
    return [
        {
            "conv_A": conversation(question, first),
            "conv_B": conversation(question, second),
            "conv_A_rating": float(index),
            "conv_B_rating": 1.5,
        }
        for index, (question, (first, second)) in enumerate(zip(questions, pairs, strict=True))
    ]


# Positions at the end are not the same: upstream's are in what both texts begin with, ours in each
# text. The first tokens are in both.
arguments = training_arguments(
    TrainingArguments, position="f2", max_steps=5, per_device_train_batch_size=4, rank=2
)
arguments.learning_rate = 4e-3
model, tokenizer = make_llama("SequenceClassification", num_labels=1), make_tokenizer(512)
model.config.pad_token_id = tokenizer.pad_token_id
layers = list(range(model.config.num_hidden_layers))
reft_config = ReftConfig(
    representations=[
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
)
reft_model = get_reft_model(model, reft_config)
forget_gradients(equal_start(reft_model, scale=0.1))
for parameter in reft_model.model.score.parameters():
    parameter.requires_grad = True
reft_model.print_trainable_parameters()


def dataset(split):
    return ReftRewardDataset(
        "own",
        "all",
        tokenizer,
        data_split=split,
        seed=arguments.seed,
        max_n_example=None,
        dataset=make_rows(),
        **{
            "num_interventions": len(layers),
            "position": arguments.position,
            "share_weights": arguments.share_weights,
        },
        conv_A_field="conv_A",
        conv_B_field="conv_B",
        conv_A_reward_field="conv_A_rating",
        conv_B_reward_field="conv_B_rating",
    )


trainer = ReftTrainerForRewardModelling(
    model=reft_model,
    tokenizer=tokenizer,
    args=arguments,
    compute_metrics=compute_metrics,
    train_dataset=dataset("train"),
    eval_dataset=dataset("val"),
    data_collator=ReftRewardCollator(
        tokenizer=tokenizer, padding=True, max_length=tokenizer.model_max_length
    ),
)
losses = keep_losses(trainer)
trainer.train()
trainer.model.model.eval()
for _, intervention in trainer.model.interventions.items():
    _ = first_of(intervention).eval()
trainer.save_state()
reft_model.save(save_directory="./reward_model")
metrics = trainer.evaluate()
named = trainer.evaluate(eval_dataset=dataset("train"), metric_key_prefix="eval_own")
numbers = {
    "losses": losses,
    "accuracy": metrics["eval_accuracy"],
    "accuracy with a prefix": named["eval_own_accuracy"],
    "first difference": metrics["eval_first"],
    "head": float(reft_model.model.score.weight.norm()),
}
