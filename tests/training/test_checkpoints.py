"""A checkpoint holds the adapter and all that the run needs to go on."""

import pytest
from runs import assert_equal, make_trainer, reft_model, weights

import pyreft
from conftest import make_base


def test_checkpoints_hold_the_adapter_and_no_base_model(tokenizer, tmp_path):
    model = reft_model()
    make_trainer(model, tokenizer, tmp_path, save_strategy="steps", save_steps=2).train()
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"reft_config.json", "reft_model.safetensors", "tokenizer.json"} <= names
    assert not {"model.safetensors", "pytorch_model.bin", "config.json"} & names
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "checkpoint-4")
    assert_equal(weights(model), weights(loaded))


def test_the_best_model_is_loaded_at_the_end(tokenizer, tmp_path):
    model = reft_model()
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 1.0}
    trainer = make_trainer(model, tokenizer, tmp_path, **settings)
    trainer.train()
    best = min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_save_model_without_arguments_saves_into_the_output_directory(tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    trainer = make_trainer(reft_model(), tokenizer, tmp_path)
    trainer.save_model()
    assert (tmp_path / "reft_model.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
