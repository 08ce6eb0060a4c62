"""ReftTrainer: trains, evaluates, saves, resumes."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import pyreft
from conftest import VOCAB, make_base

PROMPTS = [f"say {letter}: " for letter in "abcdefgh"]
COMPLETIONS = [letter * 3 for letter in "abcdefgh"]


def reft_model(**changes):
    torch.manual_seed(1)
    config = pyreft.ReftConfig(**{"layers": [1], "positions": "l1", "rank": 4} | changes)
    return pyreft.get_reft_model(make_base("llama"), config)


@pytest.fixture(scope="module")
def examples(request):
    tokenizer = request.getfixturevalue("tokenizer")
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS})
    return pyreft.make_examples(rows, tokenizer)


def make_trainer(model, examples, tokenizer, directory, cls=pyreft.ReftTrainer, **changes):
    settings = {
        "output_dir": str(directory),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    }
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer)
    arguments = TrainingArguments(**settings | changes)
    return cls(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collator,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.interventions.state_dict().items()}


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(examples, tokenizer, tmp_path):
    model = reft_model(layers="all", positions="all")
    before = copy.deepcopy(model.model.state_dict())
    trainer = make_trainer(model, examples, tokenizer, tmp_path, max_steps=30, learning_rate=0.1)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 1
    after = model.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_plain_trainer_trains_the_same(examples, tokenizer, tmp_path):
    runs = []
    for cls in (pyreft.ReftTrainer, Trainer):
        model = reft_model()
        make_trainer(model, examples, tokenizer, tmp_path, cls=cls).train()
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_evaluation_gives_a_loss_and_predictions(examples, tokenizer, tmp_path):
    model = reft_model(dropout=0.5)
    trainer = make_trainer(
        model, examples, tokenizer, tmp_path, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == trainer.evaluate()["eval_loss"]  # no dropout
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) >= 2
    predicted = trainer.predict(examples)
    assert predicted.predictions.shape[0] == len(examples)
    assert np.isfinite(predicted.metrics["test_loss"])


def test_checkpoints_hold_the_adapter_and_no_base_model(examples, tokenizer, tmp_path):
    model = reft_model()
    make_trainer(model, examples, tokenizer, tmp_path, save_strategy="steps", save_steps=2).train()
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"reft_config.json", "reft_model.safetensors", "tokenizer.json"} <= names
    assert not {"model.safetensors", "pytorch_model.bin", "config.json"} & names
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "checkpoint-4")
    ours, theirs = weights(model), weights(loaded)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(examples, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = reft_model(dropout=0.3)
    reference = make_trainer(whole, examples, tokenizer, tmp_path / "whole", **settings)
    reference.train()

    torch.manual_seed(99)
    random.seed(99)
    resumed = reft_model(dropout=0.3)
    trainer = make_trainer(resumed, examples, tokenizer, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(trainer) == losses(reference)
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_model_is_loaded_at_the_end(examples, tokenizer, tmp_path):
    model = reft_model()
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 1.0}
    trainer = make_trainer(model, examples, tokenizer, tmp_path, **settings)
    trainer.train()
    best = min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_save_model_without_arguments_saves_into_the_output_directory(
    examples, tokenizer, tmp_path
):
    (tmp_path / "notes.txt").write_text("mine")
    trainer = make_trainer(reft_model(), examples, tokenizer, tmp_path)
    trainer.save_model()
    assert (tmp_path / "reft_model.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_both_names_of_the_tokenizer_work(examples, tokenizer, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for name in ("tokenizer", "processing_class"):
        trainer = pyreft.ReftTrainerForCausalLM(
            model=reft_model(), args=arguments, train_dataset=examples, **{name: tokenizer}
        )
        assert trainer.processing_class is tokenizer
    with pytest.raises(TypeError, match="give the tokenizer once"):
        pyreft.ReftTrainer(
            model=reft_model(), args=arguments, tokenizer=tokenizer, processing_class=tokenizer
        )


def test_a_model_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"wrap the model with pyreft\.get_reft_model"):
        pyreft.ReftTrainer(model=make_base("llama"))


def test_positions_of_a_data_module_travel_with_the_adapter(tokenizer, tmp_path):
    representation = {"layer": 1, "component": "block_output", "low_rank_dimension": 4}
    config = pyreft.ReftConfig(representations=representation)
    model = pyreft.get_reft_model(make_base("llama"), config)
    module = pyreft.make_last_position_supervised_data_module(
        tokenizer, model.model, PROMPTS, COMPLETIONS
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    pyreft.ReftTrainerForCausalLM(
        model=model, tokenizer=tokenizer, args=arguments, **module
    ).train()
    model.save(save_directory=tmp_path / "adapter")
    entry = json.loads((tmp_path / "adapter" / "reft_config.json").read_text())
    assert entry["interventions"][0]["positions"] == "l1"


@pytest.mark.parametrize("changes", [{"label_smoothing_factor": 1e-9}, {}])
def test_prompts_end_where_labels_begin_also_if_the_trainer_keeps_the_labels(
    examples, tokenizer, tmp_path, changes
):
    """Label smoothing and a loss function of the user take the labels from the model."""
    plain, kept = reft_model(), reft_model()
    make_trainer(plain, examples, tokenizer, tmp_path).train()
    trainer = make_trainer(kept, examples, tokenizer, tmp_path, **changes)
    if not changes:

        def loss(outputs, labels, num_items_in_batch=None):
            return kept.loss_function(
                outputs.logits, labels, VOCAB, num_items_in_batch=num_items_in_batch
            )

        trainer.compute_loss_func = loss
    trainer.train()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(kept)[name], tensor, rtol=1e-4, atol=1e-4)


def test_positions_that_nobody_says_are_an_error(examples, tokenizer, tmp_path):
    config = pyreft.ReftConfig(representations={"layer": 1, "low_rank_dimension": 4})
    model = pyreft.get_reft_model(make_base("llama"), config)
    with pytest.raises(ValueError, match="the config leaves positions to the batch"):
        make_trainer(model, examples, tokenizer, tmp_path).train()


def test_a_run_that_cannot_be_saved_says_so_when_it_begins(examples, tokenizer, tmp_path, caplog):
    class Unregistered(pyreft.LoreftIntervention):
        pass

    module = Unregistered(embed_dim=32, low_rank_dimension=2)
    representation = {"layer": 1, "intervention": module, "positions": "l1"}
    config = pyreft.ReftConfig(representations=representation)
    model = pyreft.get_reft_model(make_base("llama"), config)
    make_trainer(model, examples, tokenizer, tmp_path)
    assert "This run will fail when it saves" in caplog.text


def test_gradient_accumulation_equals_the_large_batch(examples, tokenizer, tmp_path):
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        model = reft_model()
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        make_trainer(model, examples, tokenizer, tmp_path, max_steps=3, **settings).train()
        runs.append(weights(model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-4, atol=1e-5)
