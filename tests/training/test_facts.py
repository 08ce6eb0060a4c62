"""What a trainer tells the model card, wherever the adapter is saved."""

import re

import pytest
from datasets import DatasetInfo
from huggingface_hub import ModelCard
from runs import make_examples, make_trainer, reft_model

from pyreft import AdapterCheckpoints

RUN = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def card(directory):
    return (directory / "README.md").read_text()


def count_labels(prediction):
    return {"labels": float((prediction.label_ids != -100).sum())}


def test_the_run_is_in_the_card_however_the_adapter_is_saved(tokenizer, tmp_path):
    trainer = make_trainer(reft_model(), tokenizer, tmp_path / "run", weight_decay=0.1, **RUN)
    trainer.train()
    trainer.save_model(str(tmp_path / "one"))
    trainer.model.save_pretrained(tmp_path / "two")
    trainer.create_model_card(model_name="run", license="mit")
    for name in ("one", "two", "run"):
        text = card(tmp_path / name)
        assert "`ReftTrainer`, 4 steps, 2 epochs, 8 examples." in text
        for row in ("max_steps` | `4", "batch size` | `4", "learning_rate` | `0.01", "seed` | `42"):
            assert f"| `{row}` |" in text
        assert "| `weight_decay` | `0.1` |" in text
        assert "warmup_steps" not in text
        logged = trainer.state.log_history[-2]["eval_loss"]
        assert f"| `loss` | {logged:.4g} |" in text
        assert (tmp_path / name / "reft_loss.png").stat().st_size > 5000
    assert ModelCard(card(tmp_path / "run")).data.license == "mit"


def test_a_checkpoint_on_the_way_has_the_run_so_far_and_no_image(tokenizer, tmp_path):
    make_trainer(reft_model(), tokenizer, tmp_path, **RUN).train()
    text = card(tmp_path / "checkpoint-2")
    assert "2 steps, 1 epochs" in text
    assert ".png" not in text
    assert not list(tmp_path.rglob("*.png"))


def test_a_trainer_that_is_told_of_the_adapter_keeps_it(tokenizer, tmp_path):
    """Saving after the card was written must not lose the licence."""
    trainer = make_trainer(reft_model(), tokenizer, tmp_path)
    trainer.train()
    trainer.create_model_card(
        language="en", license="mit", tags="demo", model_name="mine", dataset_tags="me/words"
    )
    trainer.save_model()
    data = ModelCard(card(tmp_path)).data
    assert (data.language, data.license, data.datasets) == ("en", "mit", ["me/words"])
    assert data.tags[-1] == "demo"
    assert "\n# mine\n" in card(tmp_path)


def test_the_metrics_are_those_of_the_weights(tokenizer, tmp_path):
    """The best checkpoint's where that was loaded, until something is evaluated again."""
    # The worst one here, since the last one has the lowest loss.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    best |= {"greater_is_better": True, **RUN}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path / "run", **best)
    trainer.train()
    logged = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    step = max(logged, key=logged.get)
    assert step < max(logged), "the last checkpoint is the best: nothing is told apart"
    trainer.save_model(str(tmp_path / "best"))
    assert f"| `loss` | {logged[step]:.4g} |" in card(tmp_path / "best")
    trainer.compute_metrics = count_labels
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "again"))
    assert f"| `loss` | {logged[step]:.4g} |" in card(tmp_path / "again")
    assert "| `labels` | 44 |" in card(tmp_path / "again")


def test_evaluation_without_training_is_metrics_alone(tokenizer, tmp_path):
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, compute_metrics=count_labels)
    trainer.evaluate()
    trainer.model.save_pretrained(tmp_path / "adapter")
    text = card(tmp_path / "adapter")
    assert "## Training" not in text
    rows = re.findall(r"^\| `(\w+)` \| [\d.]+ \|$", text[text.index("## Evaluation") :], re.M)
    assert rows == ["loss", "labels"]


def test_other_weights_are_not_those_that_were_trained(tokenizer, tmp_path):
    other = reft_model()
    other.save_pretrained(tmp_path / "other")
    trainer = make_trainer(reft_model(), tokenizer, tmp_path / "run")
    trainer.train()
    trainer.model.load_weights(tmp_path / "other")
    trainer.model.save_pretrained(tmp_path / "adapter")
    assert "## Training" not in card(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["nyu-mll/glue", "squad"])
def test_a_data_set_of_the_hub_is_named(name, tokenizer, tmp_path):
    examples = make_examples(tokenizer).select(range(8))
    files = [f"hf://datasets/{name}@0123abc/data/train-{i}.parquet" for i in range(2)]
    local = {"/home/me/secret.json": {"num_bytes": 1}}
    examples.info.update(DatasetInfo(download_checksums=dict.fromkeys(files) | local))
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=examples)
    trainer.train()
    trainer.save_model()
    assert ModelCard(card(tmp_path)).data.datasets == [name]
    assert f"8 examples from `{name}`." in card(tmp_path)
    assert "secret" not in card(tmp_path)


def test_any_trainer_behind_adapter_checkpoints_tells_of_its_run(tokenizer, tmp_path):
    from transformers import Trainer

    class Mine(AdapterCheckpoints, Trainer):
        pass

    trainer = make_trainer(reft_model(), tokenizer, tmp_path, cls=Mine)
    trainer.train()
    trainer.save_model()
    assert "`Mine`, 4 steps" in card(tmp_path)
