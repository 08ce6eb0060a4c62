"""What a run must not go on with stops it, and says what to do."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from runs import (
    COMPLETIONS,
    PROMPTS,
    assert_equal,
    losses,
    make_examples,
    make_trainer,
    reft_model,
    weights,
)
from transformers import TrainerCallback

import pyreft
from conftest import make_base


class Spoiled(pyreft.ReftTrainer):
    """The loss of the third step is not a number."""

    value = math.nan

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * self.value if self.state.global_step == 2 else loss


class Infinite(Spoiled):
    value = math.inf


class Remember(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = weights(model)


@pytest.mark.parametrize("cls", [Spoiled, Infinite])
def test_a_loss_that_is_no_number_stops_the_run(cls, tokenizer, tmp_path):
    rows = make_examples(tokenizer).add_column("id", [f"row {i}" for i in range(8)])
    remember = Remember()
    settings = {"save_strategy": "steps", "save_steps": 1, "train_dataset": rows}
    trainer = make_trainer(
        reft_model(), tokenizer, tmp_path, cls=cls, callbacks=[remember], **settings
    )
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    said = str(caught.value)
    assert f"the loss of step 3 is {cls.value}" in said
    assert "the ids ['row " in said
    assert "input_ids are [[" in said
    assert "lower the learning rate" in said
    assert_equal(weights(trainer.model), remember.weights)
    again = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=rows)
    again.train(resume_from_checkpoint=True)
    assert len(losses(again)) == 4


def test_also_in_the_midst_of_accumulation(tokenizer, tmp_path):
    trainer = make_trainer(
        reft_model(), tokenizer, tmp_path, cls=Spoiled, gradient_accumulation_steps=2
    )
    with pytest.raises(FloatingPointError, match="the loss of step 3 is nan"):
        trainer.train()


RAW = {"prompt": PROMPTS, "completion": COMPLETIONS}


@pytest.mark.parametrize("more", [{}, {"label": [0] * 8}])
def test_raw_rows_are_refused_with_their_columns(more, tokenizer, tmp_path):
    rows = Dataset.from_dict(RAW | more)
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=rows)
    message = r"has the columns \['prompt', 'completion'.*such as input_ids.*pyreft.make_examples"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(rows)


def test_raw_rows_of_a_stream_are_refused(tokenizer, tmp_path):
    stream = Dataset.from_dict(RAW).to_iterable_dataset()
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=stream)
    with pytest.raises(ValueError, match=r"has no input_ids.*pyreft\.make_examples"):
        trainer.train()


def test_a_packed_batch_without_positions_is_refused(tokenizer, tmp_path):
    rows = [{"input_ids": [5, 6, 7, 5, 6, 7], "labels": [-100, 6, 7, -100, 6, 7]}] * 4
    rows = [{**row, "position_ids": [0, 1, 2, 0, 1, 2]} for row in rows]
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=rows)
    with pytest.raises(ValueError, match=r"is packed .* give intervention_locations"):
        trainer.train()
    located = [{**row, "intervention_locations": [[0, 3]]} for row in rows]
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=located)
    trainer.train()
    assert torch.tensor(losses(trainer)).isfinite().all()


@pytest.mark.parametrize("column", ["input_ids", "labels"])
@pytest.mark.parametrize("token", [99, -7])
def test_a_token_that_the_model_does_not_have_is_named(column, token, tokenizer, tmp_path):
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    row[column] = [*row[column][:2], token]
    rows = Dataset.from_list([row] * 4)
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=rows)
    with pytest.raises(ValueError, match=f"{column} of row 0 .*the token {token}; .*0 to 98"):
        trainer.train()


def test_a_data_set_without_rows_is_refused(tokenizer, tmp_path):
    rows = make_examples(tokenizer).select([])
    with pytest.raises(ValueError, match="the train_dataset is empty"):
        make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=rows).train()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_fresh_lora_that_is_frozen_is_warned_of(tokenizer, tmp_path, caplog):
    base = get_peft_model(make_base("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(layers=[1], positions="l1", rank=2))
    make_trainer(model, tokenizer, tmp_path)
    assert "LoRA of the base model is frozen" in caplog.text
    caplog.clear()
    model.model.enable_adapter_layers()  # what upstream's example does
    make_trainer(model, tokenizer, tmp_path)
    assert "frozen" not in caplog.text
