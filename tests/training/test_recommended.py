"""The recommended config and rates fit the model that they are for."""

import pytest
import torch
from encoder_decoder_models import make
from runs import losses, make_trainer
from transformers import AutoModelForSequenceClassification

import pyreft
from conftest import make_base


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_language_model_trains_with_it(architecture, tokenizer, tmp_path):
    base = make_base(architecture)
    chosen = pyreft.recommended(base)
    torch.manual_seed(0)
    model = pyreft.get_reft_model(base, chosen.config)
    positions = {str(c.positions) for c in model.reft_config.representations}
    assert positions == {"l1"}
    trainer = make_trainer(
        model,
        tokenizer,
        tmp_path,
        learning_rate=chosen.learning_rate,
        learning_rate_ratios=chosen.learning_rate_ratios,
        per_device_train_batch_size=8,
        max_steps=12,
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_middle_layers_of_a_deep_model_are_edited():
    chosen = pyreft.recommended(make_base("llama", num_hidden_layers=30))
    assert chosen.config.layers == [14, 16, 18, 20, 22, 24]


@pytest.mark.parametrize(
    ("architecture", "heads", "positions", "rate"),
    [("bert", ["pooler", "classifier"], "f3", 1e-3), ("llama", ["score"], "l1", 4e-3)],
)
def test_a_classifier_is_edited_where_its_head_reads(architecture, heads, positions, rate):
    config = make_base(architecture).config
    config.num_labels = 2
    chosen = pyreft.recommended(AutoModelForSequenceClassification.from_config(config))
    assert chosen.config.modules_to_save == heads
    assert str(chosen.config.positions) == positions
    assert chosen.learning_rate == rate


@pytest.mark.parametrize("base", ["gpt2", None])
def test_what_is_no_base_model_is_an_error(base):
    with pytest.raises(ValueError, match="takes a base model of transformers, got"):
        pyreft.recommended(base)


def test_what_was_not_compared_is_an_error():
    with pytest.raises(ValueError, match=r"nothing is recommended for T5.*task is seq2seq_lm"):
        pyreft.recommended(make("t5"))
