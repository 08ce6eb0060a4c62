"""ReftTrainer trains, and says at the start what cannot be trained or saved."""

import copy
import json

import pytest
import torch
from runs import (
    COMPLETIONS,
    PROMPTS,
    assert_close,
    assert_equal,
    losses,
    make_examples,
    make_trainer,
    reft_model,
    weights,
)
from transformers import Trainer, TrainingArguments

import pyreft
from conftest import VOCAB, make_base


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(tokenizer, tmp_path):
    model = reft_model(layers="all", positions="all")
    before = copy.deepcopy(model.model.state_dict())
    trainer = make_trainer(model, tokenizer, tmp_path, max_steps=30, learning_rate=0.1)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 1
    after = model.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_plain_trainer_trains_the_same(tokenizer, tmp_path):
    runs = []
    for cls, settings in ((pyreft.ReftTrainer, {"reuse_frozen": False}), (Trainer, {})):
        model = reft_model()
        make_trainer(model, tokenizer, tmp_path, cls=cls, **settings).train()
        runs.append(weights(model))
    assert_equal(*runs)


def test_both_names_of_the_tokenizer_work(tokenizer, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for name in ("tokenizer", "processing_class"):
        trainer = pyreft.ReftTrainerForCausalLM(
            model=reft_model(),
            args=arguments,
            train_dataset=make_examples(tokenizer),
            **{name: tokenizer},
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
    tokenizer, tmp_path, changes
):
    """Label smoothing and a loss function of the user take the labels from the model."""
    plain, kept = reft_model(), reft_model()
    make_trainer(plain, tokenizer, tmp_path).train()
    trainer = make_trainer(kept, tokenizer, tmp_path, **changes)
    if not changes:

        def loss(outputs, labels, num_items_in_batch=None):
            return kept.loss_function(
                outputs.logits, labels, VOCAB, num_items_in_batch=num_items_in_batch
            )

        trainer.compute_loss_func = loss
    trainer.train()
    assert_close(weights(kept), weights(plain), atol=1e-4)


def test_where_nobody_says_positions_every_token_is_edited(tokenizer, tmp_path, caplog):
    """As upstream does; the adapter then knows it, and acts so where it is loaded."""
    entry = {"layer": 1, "low_rank_dimension": 4}
    told, untold = (
        reft_model_of({**entry, **positions}) for positions in ({"positions": "all"}, {})
    )
    for model in (told, untold):
        make_trainer(model, tokenizer, tmp_path).train()
    assert_equal(weights(untold), weights(told))
    assert 'every token is edited, positions="all"' in caplog.text
    untold.save_pretrained(tmp_path / "adapter")
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "adapter")
    assert str(loaded.reft_config.representations[0].positions) == "all"


def reft_model_of(representation):
    torch.manual_seed(1)
    config = pyreft.ReftConfig(representations=representation)
    return pyreft.get_reft_model(make_base("llama"), config)


def test_a_run_that_cannot_be_saved_says_so_when_it_begins(tokenizer, tmp_path, caplog):
    unnamed = {"layer": 1, "low_rank_dimension": 2, "positions": lambda tokens: tokens.prompt}
    model = reft_model_of(unnamed)
    make_trainer(model, tokenizer, tmp_path)
    assert "This run will fail when it saves" in caplog.text
