"""Reward models: the Bradley-Terry loss, its accuracy, and what accumulation does to it."""

import copy

import numpy as np
import pytest
import torch
from runs import losses, make_arguments, weights
from transformers import (
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
)

import pyreft
from conftest import enlarge, make_base
from pyreft.training.reward import bradley_terry

CLASSIFIERS = {
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "bert": BertForSequenceClassification,
}
SIDES = ("chosen", "rejected")
# The better answer says yes.
ROWS = [{"prompt": f"{a}{b}? ", "yes": f"yes{b}", "no": f"no{a}"} for a in "abcd" for b in "xy"]


@pytest.fixture(scope="module")
def plain(request):
    """The tokenizer without a chat template, and so without a pad token in texts."""
    tokenizer = copy.deepcopy(request.getfixturevalue("tokenizer"))
    tokenizer.chat_template = None
    return tokenizer


def pairs(tokenizer, rows=ROWS, **changes):
    fields = {"prompt_field": "prompt", "conv_A_field": "yes", "conv_B_field": "no"}
    return pyreft.ReftRewardDataset("task", None, tokenizer, dataset=rows, **fields | changes)


def reward_model(architecture="llama", **changes):
    settings = make_base(architecture).config
    settings.num_labels = 1
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    base = enlarge(CLASSIFIERS[architecture](settings).eval())
    torch.manual_seed(1)
    head = "classifier" if architecture == "bert" else "score"
    settings = {"layers": [1], "positions": "l1", "rank": 4, "modules_to_save": [head]}
    return pyreft.get_reft_model(base, pyreft.ReftConfig(**settings | changes))


def make_trainer(model, data, tokenizer, directory, **changes):
    settings = {"max_steps": 3, "per_device_eval_batch_size": 3} | changes
    return pyreft.ReftTrainerForRewardModeling(
        model=model,
        args=make_arguments(directory, **settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


def test_the_loss_is_bradley_terrys():
    torch.manual_seed(0)
    logits = torch.randn(10, 1) * 3
    chosen, rejected = logits.double()[0::2, 0].numpy(), logits.double()[1::2, 0].numpy()
    by_hand = np.log1p(np.exp(rejected - chosen))
    found = bradley_terry({"logits": logits}, torch.ones(5))
    assert float(found) == pytest.approx(by_hand.mean(), rel=1e-6)
    found = bradley_terry({"logits": logits}, torch.ones(5), num_items_in_batch=20)
    assert float(found) == pytest.approx(by_hand.sum() / 20, rel=1e-6)


def test_a_large_difference_gives_no_infinite_loss():
    logits = torch.tensor([[-1e4], [1e4]])
    assert float(bradley_terry({"logits": logits}, torch.ones(1))) == pytest.approx(2e4)


def test_evaluation_agrees_with_scores_of_single_texts(plain, tmp_path, architecture):
    """Batches of 3 pairs, the last one smaller, padded; against one text at a time."""
    model, data = reward_model(architecture), pairs(plain)
    trainer = make_trainer(model, data, plain, tmp_path)
    predicted = trainer.predict(data)
    with torch.no_grad():
        alone = [
            [model(input_ids=pair[f"{side}_output"][None]).logits.item() for side in SIDES]
            for pair in data
        ]
    np.testing.assert_allclose(predicted.predictions, alone, rtol=1e-4, atol=1e-4)
    scores = np.array(alone, dtype=np.float64)
    losses = np.log1p(np.exp(scores[:, 1] - scores[:, 0]))
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert evaluated["eval_accuracy"] == (scores[:, 0] > scores[:, 1]).mean()


@pytest.mark.parametrize("side", ["left", "right"])
def test_training_ranks_the_better_answer_first(plain, tmp_path, architecture, side):
    tokenizer = copy.deepcopy(plain)
    tokenizer.padding_side = side
    model, data = reward_model(architecture), pairs(tokenizer)
    before = weights(model)
    trainer = make_trainer(model, data, tokenizer, tmp_path, max_steps=40, learning_rate=2e-2)
    if trainer.evaluate()["eval_accuracy"] > 0.5:  # by chance: then the others are better
        data = pairs(tokenizer, conv_A_field="no", conv_B_field="yes")
        trainer = make_trainer(model, data, tokenizer, tmp_path, max_steps=40, learning_rate=2e-2)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert last["eval_loss"] < first["eval_loss"] / 2
    assert first["eval_accuracy"] <= 0.5 and last["eval_accuracy"] == 1
    # A bias of the head is in both scores, and so in no difference of them.
    moved = {name for name, after in weights(model).items() if not torch.equal(after, before[name])}
    assert set(before) - moved <= {"model.classifier.bias"}


def test_accumulated_batches_equal_the_large_one(plain, tmp_path):
    """Also where the last is smaller: 7 pairs are batches of 3, 3 and 1."""
    runs = []
    for size, steps in ((7, 1), (3, 3)):
        model = reward_model()
        trainer = make_trainer(
            model,
            pairs(plain, ROWS[:7]),
            plain,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        runs.append((losses(trainer), weights(model)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4)
    for name, tensor in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], tensor, rtol=1e-3, atol=1e-5)


def test_positions_of_the_data_are_edited_and_recorded(plain, tmp_path):
    representation = {"layer": 1, "component": "block_output", "low_rank_dimension": 4}
    by_data = reward_model(representations=representation, layers="all", positions="f7+l7", rank=8)
    by_config = reward_model()
    data = pairs(plain, position="l1")
    for model in (by_data, by_config):
        make_trainer(model, data, plain, tmp_path).train()
    assert str(by_data.reft_config.representations[0].positions) == "l1"
    theirs = weights(by_config)
    for name, tensor in weights(by_data).items():
        torch.testing.assert_close(tensor, theirs[name])


def test_a_saved_reward_model_scores_the_same(plain, tmp_path):
    model, data = reward_model(), pairs(plain)
    trainer = make_trainer(model, data, plain, tmp_path)
    trainer.train()
    trainer.save_model()
    bare = reward_model().unwrap()
    loaded = pyreft.ReftModel.from_pretrained(bare, tmp_path)
    again = make_trainer(loaded, data, plain, tmp_path).predict(data)
    np.testing.assert_array_equal(again.predictions, trainer.predict(data).predictions)


def test_metrics_and_loss_of_the_user_are_kept(plain, tmp_path):
    model, data = reward_model(), pairs(plain)
    trainer = make_trainer(model, data, plain, tmp_path)
    settings = {"model": model, "args": trainer.args, "eval_dataset": data}
    own = pyreft.ReftTrainerForRewardModeling(
        **settings,
        data_collator=pyreft.ReftRewardCollator(plain),
        compute_metrics=lambda p: {"margin": float((p.predictions @ [1, -1]).mean())},
    )
    assert {"eval_margin", "eval_loss"} <= set(own.evaluate())
    assert "eval_accuracy" not in own.evaluate()


def test_a_model_of_several_labels_is_refused(plain, tmp_path):
    model = pyreft.get_reft_model(make_base("bert"), pyreft.ReftConfig(layers=[1], rank=2))
    with pytest.raises(ValueError, match="a reward model has one label, this base model has 3"):
        make_trainer(model, pairs(plain), plain, tmp_path)


def test_pairs_that_nothing_can_pad_are_refused(plain, tmp_path):
    with pytest.raises(ValueError, match="give a processing_class"):
        make_trainer(reward_model(), pairs(plain), None, tmp_path)


def test_pairs_are_named_where_the_loss_is_no_number(plain, tmp_path):
    model = reward_model()
    with torch.no_grad():
        model.model.score.weight.fill_(torch.nan)
    trainer = make_trainer(model, pairs(plain), plain, tmp_path)
    with pytest.raises(FloatingPointError, match="examples of the batch have the ids"):
        trainer.train()


def test_columns_that_another_trainer_removed_are_asked_for(plain):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        pyreft.ReftRewardCollator(plain)([{}])
