"""BabelEdits: facts are edited at the tokens of a word; a subclass of ReftModel finds them."""

import copy
import os
import shutil

import datasets
import torch
from _shared import (
    equal_start,
    first_of,
    is_ours,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)
from transformers import DataCollatorForSeq2Seq, TrainerCallback

import pyreft
from pyreft import ReftModel, ReftTrainerForCausalLM
from pyreft.dataset import ReftDataCollator


class BabelReftModel(ReftModel):
    def __init__(self, reft_config, model, pos_type, tokenizer, words_to_add=None, *args, **kwargs):
        super(BabelReftModel, self).__init__(reft_config, model)  # noqa: UP008
        self.vocab = {}
        self.tokenizer = tokenizer
        self.pos_type = pos_type
        for word in words_to_add or []:
            self.vocab[word] = tokenizer(word, add_special_tokens=False)["input_ids"]

    def forward(
        self,
        base,
        sources=None,
        unit_locations=None,
        source_representations=None,
        subspaces=None,
        labels=None,
        output_original_output=False,
        return_dict=None,
        use_cache=None,
    ):
        if self.model.training:
            _, edited = super().forward(
                base,
                sources,
                unit_locations,
                source_representations,
                subspaces,
                labels,
                output_original_output,
                return_dict,
                use_cache,
            )
            return None, edited
        unit_locations, mask = self.get_intervention_setup(base["input_ids"])
        original = self.model(**base) if not mask.all() else None
        if not mask.any():
            return original.logits
        _, edited = super().forward(
            base=base,
            output_original_output=False,
            unit_locations=unit_locations,
            subspaces=None,
        )
        if original is None:
            return edited.logits
        return torch.where(mask[:, None, None].bool(), edited.logits, original.logits)

    def get_intervention_setup(self, rows):
        """The last token of the first word that each row has; 0 and no mask without one."""
        places, mask = [], torch.zeros(len(rows))
        for index, row in enumerate(rows.tolist()):
            found = [row.index(ids[-1]) for ids in self.vocab.values() if ids[-1] in row]
            places.append([found[0] if found else 0])
            mask[index] = float(bool(found))
        return {"sources->base": (None, [places] * len(self.interventions))}, mask


def get_reft_model(model, reft_config, pos_type, tokenizer, words_to_add=None):
    reft_model = BabelReftModel(reft_config, model, pos_type, tokenizer, words_to_add)
    reft_model.set_device(model.device)
    reft_model.disable_model_gradients()
    return reft_model


class SaveBestTrainingLoss(TrainerCallback):
    def __init__(self):
        self.best_loss, self.best_checkpoint_path = float("inf"), None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        control.should_save = float(logs["loss"]) < self.best_loss
        if control.should_save:
            self.best_loss = float(logs["loss"])
            folder = f"checkpoint-{state.global_step}"
            self.best_checkpoint_path = os.path.join(args.output_dir, folder)

    def on_save(self, args, state, control, **kwargs):
        for name in os.listdir(args.output_dir):
            path = os.path.join(args.output_dir, name)
            if name.startswith("checkpoint-") and path != self.best_checkpoint_path:
                shutil.rmtree(path)


class StopBelow(TrainerCallback):
    def __init__(self, threshold):
        self.threshold = threshold

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and "loss" in logs and float(logs["loss"]) < self.threshold:
            control.should_training_stop = True
        return control


base, tokenizer = make_llama(), make_tokenizer()
reft_config = pyreft.ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "unit": "pos",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=64, low_rank_dimension=4, dtype=torch.float32
            ),
        }
        for layer in [1]
    ]
)
model = get_reft_model(base, reft_config, "last_token", tokenizer, words_to_add=["france", "italy"])
equal_start(model)
weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
assert weights

prompt, target = "the capital of france", "rome"
ids = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
labels = copy.deepcopy(ids)
labels[0, : tokenizer(prompt, return_tensors="pt")["input_ids"].shape[-1]] = -100
locations, _ = model.get_intervention_setup(ids)
locations = torch.tensor(locations["sources->base"][1])
train_dataset = datasets.Dataset.from_dict(
    {
        "input_ids": ids,
        "intervention_locations": locations.permute(1, 0, 2).tolist(),
        "labels": labels,
    }
)
collate = ReftDataCollator(
    data_collator=DataCollatorForSeq2Seq(
        tokenizer=tokenizer, model=model, label_pad_token_id=-100, padding="longest"
    )
)
saving = SaveBestTrainingLoss()
arguments = training_arguments(
    num_train_epochs=6,
    output_dir="./reft_res/edit_0",
    per_device_train_batch_size=1,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=1,
    save_strategy="steps",
)
trainer = ReftTrainerForCausalLM(
    model=model,
    tokenizer=tokenizer,
    args=arguments,
    callbacks=[StopBelow(threshold=0.01), saving],
    train_dataset=train_dataset,
    eval_dataset=None,
    data_collator=collate,
)
numbers = {"losses": keep_losses(trainer)}
trainer.train()

# What `load_intervention` does, which in upstream needs a GPU.
folder = f"{saving.best_checkpoint_path}/intervenable_model"
if torch.cuda.is_available() or is_ours():
    trainer.model.load_intervention(folder, include_model=False)
model.model.eval()
rows = ["the capital of france", "the capital of italy", "the color of rain is"]
batch = tokenizer(rows, padding=True, return_tensors="pt")
base_inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    numbers["logits"] = plain(model(base_inputs)[:, -1, :40])
    alone = tokenizer("the color of rain is", return_tensors="pt")
    numbers["logits without a word"] = plain(
        model({"input_ids": alone["input_ids"], "attention_mask": alone["attention_mask"]})[0, -1]
    )
kept = {
    key: copy.deepcopy(first_of(intervention).state_dict())
    for key, intervention in model.interventions.items()
}
(state,) = kept.values()
numbers["bias"] = plain(state["bias"])
