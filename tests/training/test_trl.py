"""TRL's trainers train a ReftModel as they train any model."""

import copy
import math

import pytest
import torch
from datasets import Dataset

import pyreft
from conftest import make_base, randomize

trl = pytest.importorskip("trl")
# TRL uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")

ROWS = [{"prompt": f"say {letter}: ", "completion": letter * 3} for letter in "abcdefgh"]
PAIRS = [
    {"prompt": f"say {letter}: ", "chosen": letter * 3, "rejected": "zz"} for letter in "abcdefgh"
]
SETTINGS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


class ReftSFTTrainer(pyreft.AdapterCheckpoints, trl.SFTTrainer):
    pass


class ReftDPOTrainer(pyreft.AdapterCheckpoints, trl.DPOTrainer):
    pass


def reft_model(architecture="llama", **changes):
    base = make_base(architecture)
    torch.manual_seed(1)
    config = {"layers": [0, 1], "positions": "f1+l1", "rank": 4} | changes
    return pyreft.get_reft_model(base, pyreft.ReftConfig(**config))


def sft_trainer(model, rows, tokenizer, directory, cls=trl.SFTTrainer, **changes):
    rows = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    return cls(
        model=model,
        args=trl.SFTConfig(str(directory), **SETTINGS | changes),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def dpo_trainer(model, tokenizer, directory, cls=trl.DPOTrainer, **changes):
    return cls(
        model=model,
        ref_model=pyreft.ReferenceModel(model),
        args=trl.DPOConfig(str(directory), **SETTINGS | changes),
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.interventions.state_dict().items()}


def assert_same_weights(ours, theirs, tolerance=0.0):
    ours, theirs = weights(ours), weights(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


# ---- SFT -----------------------------------------------------------------------------------------


def as_chat(row):
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


@pytest.mark.parametrize("make", [dict, as_chat])
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": False}, {"loss_type": "dft"}])
def test_sft_on_prompts_and_completions_equals_our_trainer(make, changes, tokenizer, tmp_path):
    if changes.get("loss_type") == "dft":
        pytest.skip("another loss")
    rows = Dataset.from_list([make(row) for row in ROWS])
    theirs, ours = reft_model(), reft_model()
    sft_trainer(theirs, rows, tokenizer, tmp_path, **changes).train()
    from transformers import TrainingArguments

    pyreft.ReftTrainer(
        model=ours,
        args=TrainingArguments(str(tmp_path), **SETTINGS),
        train_dataset=pyreft.make_examples(rows, tokenizer),
        processing_class=tokenizer,
    ).train()
    assert_same_weights(theirs, ours, 1e-5)


def test_dpo(tokenizer, tmp_path):
    model = reft_model()
    trainer = dpo_trainer(model, tokenizer, tmp_path, max_steps=8)
    trainer.train()
    print(trainer.state.log_history)
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
