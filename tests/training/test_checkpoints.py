"""A checkpoint holds the adapter and all that the run needs to go on."""

import re
import resource

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


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


def there(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != "runs")


def test_old_checkpoints_are_deleted_but_for_the_best(tokenizer, tmp_path):
    # The loss falls, so that the first is the best where more is better.
    settings = EVERY_STEP | {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True}
    make_trainer(reft_model(), tokenizer, tmp_path, **settings).train()
    assert there(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_a_second_run_replaces_checkpoints_of_the_first(tokenizer, tmp_path):
    make_trainer(reft_model(), tokenizer, tmp_path, **EVERY_STEP).train()
    second = make_trainer(reft_model(), tokenizer, tmp_path, max_steps=2, **EVERY_STEP)
    second.args.learning_rate = 0.5
    second.train()
    assert there(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "checkpoint-2")
    assert_equal(weights(loaded), weights(second.model))


def test_the_newest_stays_though_a_run_before_went_further(tokenizer, tmp_path):
    make_trainer(reft_model(), tokenizer, tmp_path, **EVERY_STEP).train()
    settings = EVERY_STEP | {"max_steps": 2, "save_total_limit": 1}
    make_trainer(reft_model(), tokenizer, tmp_path, **settings).train()
    assert there(tmp_path) == ["checkpoint-2"]


def test_any_name_of_a_directory_will_do(tokenizer, tmp_path):
    directory = tmp_path / "lauf 1 \u00fc\u00f1 [x]"
    make_trainer(reft_model(), tokenizer, directory, **EVERY_STEP).train()
    again = make_trainer(reft_model(), tokenizer, directory, max_steps=5)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5


def test_a_checkpoint_without_the_runs_state_is_not_resumed_from(tokenizer, tmp_path):
    model = reft_model()
    before = weights(model)
    trainer = make_trainer(model, tokenizer, tmp_path, save_only_model=True, **EVERY_STEP)
    make_trainer(reft_model(), tokenizer, tmp_path, save_only_model=True, **EVERY_STEP).train()
    with pytest.raises(ValueError, match=r"it has no optimizer\.pt.*saved with save_only_model"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"it has no trainer_state\.json"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    assert_equal(weights(model), before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rank": 2}, r"has arguments .*'low_rank_dimension': 4"),
        ({"layers": [2]}, "has layer 1, this model's has 2"),
        ({"kind": "nodireft"}, "has kind 'loreft', this model's has 'nodireft'"),
        ({"positions": "f1"}, "has positions 'l1', this model's has 'f1'"),
        ({"layers": [0, 1]}, "has 1 interventions, this model has 2"),
        ({"modules_to_save": ["lm_head"]}, "was trained with modules_to_save None"),
        ({"architecture": "gpt2"}, "with model_type 'llama'; this model has model_type 'gpt2'"),
    ],
)
def test_a_run_does_not_go_on_from_another_config(other, message, finished, tokenizer, tmp_path):
    model = reft_model(**other)
    before = weights(model)
    trainer = make_trainer(model, tokenizer, tmp_path, max_steps=9)
    with pytest.raises(pyreft.AdapterError, match=message):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-4"))
    assert_equal(weights(model), before)


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    make_trainer(reft_model(), tokenizer, directory, **EVERY_STEP).train()
    return directory


@pytest.fixture
def full_disk():
    """Lets files of this process not grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The tokenizer fits into none; then the optimiser's file, then the last ones.
@pytest.mark.parametrize("size", [100, 2_000, 6_000])
def test_a_full_disk_leaves_the_older_checkpoint(size, full_disk, tokenizer, tmp_path):
    class OnAFullDisk(pyreft.ReftTrainer):
        def _save_checkpoint(self, *args):
            full_disk(size if self.state.global_step == 3 else resource.RLIM_INFINITY)
            try:
                super()._save_checkpoint(*args)
            finally:
                full_disk(resource.RLIM_INFINITY)

    trainer = make_trainer(reft_model(), tokenizer, tmp_path, cls=OnAFullDisk, **EVERY_STEP)
    newest = re.escape(str(tmp_path / "checkpoint-2"))
    with pytest.raises(OSError, match=f"checkpoint-3 could not be saved: .*is {newest}"):
        trainer.train()
    assert there(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    again = make_trainer(reft_model(), tokenizer, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_a_directory_that_cannot_be_written_is_said(tokenizer, tmp_path):
    trainer = make_trainer(reft_model(), tokenizer, tmp_path / "run", **EVERY_STEP)
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match=r"checkpoint-1 could not be saved: .*checkpoint is none"):
        trainer.train()
    assert (tmp_path / "run").read_text() == "a file"
