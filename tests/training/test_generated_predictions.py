"""Evaluation by what the model writes: predictions are those of `generate` on the prompts."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import PROMPTS, logged, make_examples, make_trainer, reft_model
from transformers import GenerationConfig

from conftest import randomize

ASKED = {"predict_with_generate": True, "generation_max_length": 4}


def edited():
    """A model that writes something else than its base does, and ends at different lengths."""
    return randomize(reft_model(positions="f1+l2"), 3.0).eval()


def alone(model, tokenizer, **arguments):
    """What `generate` writes after each prompt, without padding."""
    written = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        arguments = {"max_new_tokens": 4} | arguments
        ids = model.generate(**given, **arguments)
        written.append(ids[0, given["input_ids"].shape[1] :].tolist())
    return written


def written(predictions):
    """Rows of tokens without what fills them up: -100, or the pad token, which is 0."""
    return [[token for token in row if token > 0] for row in predictions.tolist()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [None, 3])
def test_predictions_are_those_of_each_prompt_alone(side, beams, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    model = edited()
    settings = {**ASKED, "generation_num_beams": beams, "per_device_eval_batch_size": 3}
    trainer = make_trainer(model, tokenizer, tmp_path, **settings)
    predicted = trainer.predict(make_examples(tokenizer))
    expected = alone(model, tokenizer, **({"num_beams": beams} if beams else {}))
    assert written(predicted.predictions) == [[t for t in row if t > 0] for row in expected]
    with model.disable_adapter():
        assert alone(model, tokenizer) != expected


def test_labels_are_those_of_the_batch_and_the_loss_is_that_of_evaluation(tokenizer, tmp_path):
    trainer = make_trainer(edited(), tokenizer, tmp_path, **ASKED)
    predicted = trainer.predict(make_examples(tokenizer))
    for row, example in zip(predicted.label_ids, make_examples(tokenizer), strict=True):
        assert row[row != -100].tolist() == [t for t in example["labels"] if t != -100]
    plain = make_trainer(edited(), tokenizer, tmp_path).evaluate()
    assert predicted.metrics["test_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


def count_tokens(prediction):
    return {"longest": int((prediction.predictions != -100).sum(1).max())}


def test_arguments_of_a_call_win_and_hold_for_every_data_set(tokenizer, tmp_path):
    rows = make_examples(tokenizer)
    sets = {"one": rows.select(range(4)), "two": rows.select(range(4, 8))}
    # Never an end token, so that all that was asked for is written.
    settings = {**ASKED, "generation_config": GenerationConfig(suppress_tokens=[1])}
    trainer = make_trainer(
        edited(), tokenizer, tmp_path, compute_metrics=count_tokens, eval_dataset=sets, **settings
    )
    names = ("eval_one_longest", "eval_two_longest")
    assert [trainer.evaluate(max_new_tokens=3)[name] for name in names] == [3, 3]
    assert [trainer.evaluate()[name] for name in names] == [4, 4]
    assert trainer.evaluate(sets["one"], max_length=16)["eval_longest"] > 4
    assert trainer.predict(rows, max_new_tokens=2).predictions.shape == (8, 2)


def test_the_best_model_is_chosen_by_what_it_writes(tokenizer, tmp_path):
    def end(prediction):
        """How many predictions are right to the last token."""
        right = [
            [t for t in row if t > 1] == [t for t in label if t > 1]
            for row, label in zip(prediction.predictions, prediction.label_ids, strict=True)
        ]
        return {"right": float(np.mean(right))}

    rows = make_examples(tokenizer).select(range(2))
    model = reft_model(layers="all", positions="all", rank=8)
    settings = {"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "best"}
    settings |= {"metric_for_best_model": "two_right", "load_best_model_at_end": True}
    settings |= {"max_steps": 30, "learning_rate": 0.05, "train_dataset": rows}
    settings |= {"eval_dataset": {"two": rows}, "greater_is_better": True}
    trainer = make_trainer(model, tokenizer, tmp_path, compute_metrics=end, **ASKED, **settings)
    trainer.train()
    assert max(logged(trainer, "eval_two_right")) == trainer.state.best_metric == 1.0
    assert trainer.evaluate()["eval_two_right"] == 1.0


def test_examples_without_labels_are_prompts(tokenizer, tmp_path):
    rows = [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in PROMPTS]
    model = edited()
    trainer = make_trainer(model, tokenizer, tmp_path, **ASKED)
    predicted = trainer.predict(rows)
    assert written(predicted.predictions) == [
        [t for t in row if t > 0] for row in alone(model, tokenizer)
    ]
    assert predicted.label_ids is None


def test_generation_is_cast_as_training_is(tokenizer, tmp_path):
    seen = set()
    model = edited()
    model.model.lm_head.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    trainer = make_trainer(model, tokenizer, tmp_path, bf16=True, **ASKED)
    trainer.predict([{"input_ids": [5, 6, 7]}])
    assert seen == {torch.bfloat16}


def test_a_model_that_does_not_generate_says_so(tokenizer, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "label": [1]})
    settings = {**ASKED, "eval_dataset": rows, "compute_metrics": lambda _: {}}
    trainer = make_trainer(
        reft_model("bert", modules_to_save=["classifier"]), tokenizer, tmp_path, **settings
    )
    with pytest.raises(ValueError, match="does not generate"):
        trainer.evaluate()


def test_predictions_are_tokens_whatever_else_the_model_could_return(tokenizer, tmp_path):
    model = edited()
    model.generation_config.return_dict_in_generate = True
    predictions = make_trainer(model, tokenizer, tmp_path, **ASKED).predict(
        make_examples(tokenizer)
    )
    assert predictions.predictions.shape[0] == len(PROMPTS)
