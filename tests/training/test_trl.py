"""TRL's trainers train a ReftModel as they train any model."""

import copy
import functools
import math

import pytest
import runs
import torch
from datasets import Dataset
from runs import SETTINGS, logged
from transformers import TrainingArguments

import pyreft
from conftest import make_base

trl = pytest.importorskip("trl")
# TRL uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")

ROWS = [{"prompt": f"say {letter}: ", "completion": letter * 3} for letter in "abcdefgh"]
PAIRS = [{"prompt": f"say {one}: ", "chosen": one * 3, "rejected": "zz"} for one in "abcdefgh"]
TEXT = ("input_ids", "attention_mask")

reft_model = functools.partial(runs.reft_model, layers=[0, 1], positions="f1+l1")


class ReftSFTTrainer(pyreft.AdapterCheckpoints, trl.SFTTrainer):
    pass


class ReftDPOTrainer(pyreft.AdapterCheckpoints, trl.DPOTrainer):
    pass


def sft_trainer(model, rows, tokenizer, directory, cls=trl.SFTTrainer, **changes):
    rows = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    return cls(
        model=model,
        args=trl.SFTConfig(str(directory), **SETTINGS | {"bf16": False} | changes),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def dpo_trainer(model, tokenizer, directory, cls=trl.DPOTrainer, pairs=PAIRS, **changes):
    return cls(
        model=model,
        ref_model=pyreft.ReferenceModel(model),
        args=trl.DPOConfig(str(directory), **SETTINGS | {"bf16": False} | changes),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )


def our_trainer(model, examples, tokenizer, directory):
    arguments = TrainingArguments(str(directory), **SETTINGS)
    return pyreft.ReftTrainer(
        model=model, args=arguments, train_dataset=examples, processing_class=tokenizer
    )


def assert_same_weights(ours, theirs, tolerance=0.0):
    ours, theirs = ours.interventions.state_dict(), theirs.interventions.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


# ---- SFT -----------------------------------------------------------------------------------------


def as_chat(row):
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


@pytest.mark.parametrize("make", [dict, as_chat])
@pytest.mark.parametrize("recompute", [True, False])
def test_sft_on_prompts_and_completions_equals_our_trainer(make, recompute, tokenizer, tmp_path):
    rows = Dataset.from_list([make(row) for row in ROWS])
    theirs, ours = reft_model(), reft_model()
    start = copy.deepcopy(theirs.interventions)
    sft_trainer(theirs, rows, tokenizer, tmp_path, gradient_checkpointing=recompute).train()
    our_trainer(ours, pyreft.make_examples(rows, tokenizer), tokenizer, tmp_path).train()
    assert_same_weights(theirs, ours, 1e-5)
    moved = zip(start.parameters(), theirs.interventions.parameters(), strict=True)
    assert all((one - other).abs().max() > 1e-3 for one, other in moved)


def conversations():
    turns = [("user", "hi"), ("assistant", "ho"), ("user", "he"), ("assistant", "ha")]
    messages = [{"role": role, "content": content} for role, content in turns]
    return Dataset.from_list([{"messages": messages}] * 4)


def test_sft_on_the_turns_of_conversations_equals_our_trainer(tokenizer, tmp_path):
    examples = pyreft.make_examples(conversations(), tokenizer)
    theirs, ours = reft_model(), reft_model()
    sft_trainer(theirs, examples, tokenizer, tmp_path).train()
    our_trainer(ours, examples, tokenizer, tmp_path).train()
    assert_same_weights(theirs, ours, 1e-5)


def test_sft_changes_no_weight_of_the_base_model(tokenizer, tmp_path):
    model = reft_model()
    before = copy.deepcopy(model.model.state_dict())
    trainer = sft_trainer(model, ROWS, tokenizer, tmp_path, max_steps=20, learning_rate=0.1)
    fresh = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"] < fresh - 0.3
    assert all(torch.equal(t, before[name]) for name, t in model.model.state_dict().items())


@pytest.mark.parametrize("rows", [conversations(), [{"text": "say a"}] * 4])
def test_texts_without_a_prompt_are_refused_with_advice(rows, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"the prompt of row 0 is empty.*pyreft\.make_examples"):
        sft_trainer(reft_model(), rows, tokenizer, tmp_path).train()


def test_texts_without_a_prompt_train_adapters_that_edit_everything(tokenizer, tmp_path):
    model = reft_model(positions="all")
    trainer = sft_trainer(model, [{"text": "say a"}] * 4, tokenizer, tmp_path, max_steps=10)
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]


def test_labels_on_several_answers_are_refused_with_advice(tokenizer, tmp_path):
    """As assistant_only_loss makes them of a conversation."""
    labels = [-100, -100, 5, 6, -100, -100, 7, 8]
    rows = [{"input_ids": list(range(3, 11)), "labels": labels}] * 4
    with pytest.raises(ValueError, match=r"stop and begin again.*pyreft\.make_examples"):
        sft_trainer(reft_model(), rows, tokenizer, tmp_path).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding_free": True, "max_length": None}, "is packed"),
        ({"packing": True, "max_length": 32}, "is packed"),
        (
            {"packing": True, "packing_strategy": "wrapped", "max_length": 32},
            "stop and begin again|prompt of row . is empty",
        ),
    ],
)
def test_packed_texts_are_refused(changes, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        sft_trainer(reft_model(), ROWS, tokenizer, tmp_path, **changes).train()


# ---- DPO -----------------------------------------------------------------------------------------


def start_at_base(model):
    for intervention in model.interventions.values():
        intervention.edit_nothing()
    return model


def test_the_first_loss_of_dpo_is_ln_2_and_the_margin_rises(tokenizer, tmp_path):
    model = start_at_base(reft_model())
    before = copy.deepcopy(model.model.state_dict())
    trainer = dpo_trainer(model, tokenizer, tmp_path, max_steps=20, learning_rate=3e-2)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    margins = logged(trainer, "rewards/margins")
    assert abs(margins[0]) < 1e-5
    assert margins[-1] > 0.2
    assert trainer.evaluate()["eval_rewards/accuracies"] == 1.0
    assert all(torch.equal(t, before[name]) for name, t in model.model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_reference_log_probabilities_are_those_of_the_bare_base_model(
    architecture, tokenizer, tmp_path
):
    """Also while the policy, with dropout in it, is in training mode."""
    model = reft_model(architecture)
    trainer = dpo_trainer(model, tokenizer, tmp_path, disable_dropout=False)
    trainer.train()
    model.train()
    batch = next(iter(trainer.get_eval_dataloader()))
    found = torch.cat(trainer.compute_ref_log_probs(trainer.ref_model, batch))
    logits = make_base(architecture)(**{name: batch[name] for name in TEXT}).logits
    picked = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    torch.testing.assert_close(found, (picked * batch["completion_mask"][:, 1:]).sum(1))


def test_precomputed_reference_log_probabilities_train_the_same(tokenizer, tmp_path):
    models = [reft_model(), reft_model()]
    for model, precompute in zip(models, (True, False), strict=True):
        dpo_trainer(model, tokenizer, tmp_path, precompute_ref_log_probs=precompute).train()
    assert_same_weights(*models, 1e-6)


def test_recomputed_activations_train_the_same(tokenizer, tmp_path):
    models = [reft_model(), reft_model()]
    for model, recompute in zip(models, (True, False), strict=True):
        dpo_trainer(model, tokenizer, tmp_path, gradient_checkpointing=recompute).train()
    assert_same_weights(*models, 1e-6)


@pytest.mark.filterwarnings("ignore:The `'keep_end'")
def test_a_prompt_cut_off_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="prompt of row 0 is empty"):
        changes = {"max_length": 3, "truncation_mode": "keep_end"}
        dpo_trainer(reft_model(), tokenizer, tmp_path, **changes).train()


# ---- checkpoints ---------------------------------------------------------------------------------


def make_trainer(task, model, tokenizer, directory, **changes):
    if task == "dpo":
        return dpo_trainer(model, tokenizer, directory, cls=ReftDPOTrainer, **changes)
    return sft_trainer(model, ROWS, tokenizer, directory, cls=ReftSFTTrainer, **changes)


@pytest.fixture(params=["sft", "dpo"])
def task(request):
    return request.param


def test_checkpoints_hold_the_adapter_and_no_base_model(task, tokenizer, tmp_path):
    model = reft_model()
    trainer = make_trainer(task, model, tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"reft_config.json", "reft_model.safetensors", "tokenizer.json"} <= names
    assert not {"model.safetensors", "pytorch_model.bin", "config.json"} & names
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "checkpoint-4")
    assert_same_weights(loaded, model)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(task, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole, resumed = reft_model(dropout=0.1), reft_model(dropout=0.1)
    reference = make_trainer(task, whole, tokenizer, tmp_path / "whole", **settings)
    reference.train()
    trainer = make_trainer(task, resumed, tokenizer, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert logged(trainer, "loss") == logged(reference, "loss")
    assert_same_weights(resumed, whole)


def test_the_best_model_is_loaded_at_the_end(task, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 1.0}
    trainer = make_trainer(task, reft_model(), tokenizer, tmp_path, **settings)
    trainer.train()
    best = min(logged(trainer, "eval_loss"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)
