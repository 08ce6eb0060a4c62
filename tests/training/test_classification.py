"""Classifiers of one label, several labels, values and tokens, their heads trained beside."""

import pytest
import torch
from datasets import Dataset
from runs import assert_equal, losses, make_trainer, reft_model, weights
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import pyreft
from conftest import VOCAB, WIDTH, make_base

SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "vocab_size": VOCAB, "pad_token_id": 0}
TEXTS = ["good", "very bad", "so so", "fine", "a bore", "great fun"]
LABELS = {
    "single": [0, 2, 1, 0, 2, 0],
    "multi": [[1.0, 0, 0], [0.0, 1, 1], [0.0, 0, 0], [1.0, 1, 1], [0.0, 1, 0], [1.0, 0, 1]],
    "regression": [0.9, -0.8, 0.1, 0.4, -0.5, 1.0],
}


def make_bert(**changes):
    return make_base("bert", num_hidden_layers=2, **changes)


def make_llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | changes, bos_token_id=2, eos_token_id=1)
    return LlamaForSequenceClassification(config).eval()


def wrap(base, head, **changes):
    config = {"layers": [1], "positions": "f1", "rank": 2, "modules_to_save": [head]}
    torch.manual_seed(1)
    return pyreft.get_reft_model(base, pyreft.ReftConfig(**config | changes))


def rows(tokenizer, labels, column="label"):
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return Dataset.from_dict({"input_ids": ids, column: labels, "text": TEXTS})


def loss_by_hand(model, examples, task):
    labels = torch.tensor(LABELS[task])
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids in examples["input_ids"]]
    logits = torch.stack(logits).double()
    if task == "multi":
        return binary_cross_entropy_with_logits(logits, labels.double()).item()
    if task == "regression":
        return mse_loss(logits[:, 0], labels.double()).item()
    return cross_entropy(logits, labels).item()


@pytest.mark.parametrize("make", [make_bert, make_llama])
@pytest.mark.parametrize(
    ("task", "cls", "column"),
    [
        ("single", pyreft.ReftTrainerForSequenceClassification, "label"),
        ("single", pyreft.ReftTrainer, "label_ids"),
        ("multi", pyreft.ReftTrainer, "labels"),
        ("regression", pyreft.ReftTrainer, "label"),
    ],
)
def test_a_head_is_trained_evaluated_saved_and_loaded(make, task, cls, column, tokenizer, tmp_path):
    sizes = {"num_labels": 1 if task == "regression" else 3}
    examples = rows(tokenizer, LABELS[task], column)
    runs = []
    for collator in (
        pyreft.ReftDataCollator(tokenizer=tokenizer),
        DataCollatorWithPadding(tokenizer),
    ):
        base = make(**sizes)
        model = wrap(base, "score" if make is make_llama else "classifier")
        expected = loss_by_hand(model.eval(), examples, task)
        settings = {"train_dataset": examples, "eval_dataset": examples, "max_steps": 6}
        settings |= {"per_device_train_batch_size": 6, "data_collator": collator, "cls": cls}
        trainer = make_trainer(model, tokenizer, tmp_path, **settings)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0])[-1] < losses(runs[0])[0]
    runs[0].save_model(str(tmp_path / "adapter"))
    loaded = pyreft.ReftModel.from_pretrained(make(**sizes), tmp_path / "adapter")
    assert loss_by_hand(loaded, examples, task) == loss_by_hand(
        runs[0].model.eval(), examples, task
    )


def test_a_tagger_is_trained(tokenizer, tmp_path):
    torch.manual_seed(0)
    base = BertForTokenClassification(BertConfig(**SIZES, num_labels=3)).eval()
    labels = [[-100, *[i % 3 for i in range(len(text) - 1)]] for text in TEXTS]
    examples = rows(tokenizer, labels, "labels")
    runs = []
    for collator in (
        pyreft.ReftDataCollator(tokenizer=tokenizer),
        DataCollatorForTokenClassification(tokenizer),
    ):
        torch.manual_seed(2)
        model = wrap(base, "classifier", positions="all")
        settings = {"train_dataset": examples, "eval_dataset": examples, "max_steps": 3}
        trainer = make_trainer(model, tokenizer, tmp_path, data_collator=collator, **settings)
        trainer.train()
        runs.append(losses(trainer))
        model.unwrap()
    assert runs[0] == runs[1]
    examples = examples.map(lambda row: {"labels": [7] * len(row["labels"])})
    settings["train_dataset"] = examples
    with pytest.raises(ValueError, match="the label of row 0 of the batch is 7; the model has the"):
        make_trainer(wrap(base, "classifier"), tokenizer, tmp_path, **settings).train()


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_no_class_has_stops_the_run(label, tokenizer, tmp_path):
    examples = rows(tokenizer, [0, 1, 2, 0, 1, label])
    model = wrap(make_bert(), "classifier")
    trainer = make_trainer(
        model, tokenizer, tmp_path, train_dataset=examples, per_device_train_batch_size=6
    )
    before = weights(model)
    with pytest.raises(ValueError, match=f"is {label}; the model has the 3 labels 0 to 2"):
        trainer.train()
    assert_equal(weights(model), before)


def test_labels_of_other_models_are_no_classes(tokenizer, tmp_path):
    """A masked language model has num_labels as well, and labels from the vocabulary."""
    torch.manual_seed(0)
    base = BertForMaskedLM(BertConfig(**SIZES)).eval()
    config = pyreft.ReftConfig(layers=[1], positions="f1", rank=2)
    examples = [{"input_ids": [5, 6, 7], "labels": [-100, 60, -100]}] * 4
    model = pyreft.get_reft_model(base, config)
    trainer = make_trainer(model, tokenizer, tmp_path, train_dataset=examples, max_steps=1)
    trainer.train()
    assert losses(trainer)[0] > 0


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize(("make", "head"), [(make_bert, "classifier"), (make_llama, "score")])
def test_a_frozen_head_is_warned_of(make, head, tokenizer, tmp_path, caplog):
    make_trainer(wrap(make(), head), tokenizer, tmp_path)
    make_trainer(reft_model(), tokenizer, tmp_path)
    assert "frozen" not in caplog.text
    model = wrap(make(), head, modules_to_save=None)
    make_trainer(model, tokenizer, tmp_path)
    assert f"is frozen ({head})" in caplog.text
    assert f"modules_to_save=['{head}']" in caplog.text
    caplog.clear()
    compiled = torch.compile(make(), backend="eager")
    make_trainer(wrap(compiled, head, modules_to_save=None), tokenizer, tmp_path)
    assert f"is frozen ({head})" in caplog.text


def test_the_best_head_is_loaded_at_the_end(tokenizer, tmp_path):
    examples = rows(tokenizer, LABELS["single"])
    model = wrap(make_bert(), "classifier")
    settings = {"train_dataset": examples, "eval_dataset": examples, "learning_rate": 0.5}
    settings |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1}
    settings |= {"save_steps": 1, "load_best_model_at_end": True}
    trainer = make_trainer(model, tokenizer, tmp_path, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], "a list of 3 floats"),
        ([True, False], "bools of shape"),
        ([[0.0, 1.0], [1.0, 0.0]], r"float32s of shape \(2, 2\)"),
        ([[0, 1, 1, 0], [1, 0, 1, 0]], "a text has one class"),
    ],
)
def test_labels_of_another_shape_are_refused(labels, message, tokenizer, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8], [8, 7, 6, 5]], "labels": labels})
    model = reft_model("bert", modules_to_save=["classifier"])
    with pytest.raises(ValueError, match=message):
        make_trainer(model, tokenizer, tmp_path, train_dataset=rows).train()
