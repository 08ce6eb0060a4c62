"""A run that was stopped anywhere and resumed is the run that was not stopped, bit for bit."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import assert_equal, losses, make_examples, make_trainer, reft_model, weights
from transformers import EarlyStoppingCallback, Trainer

import pyreft
from conftest import make_base


def with_lora(**changes):
    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.2)
    base = get_peft_model(make_base("llama"), lora)
    config = pyreft.ReftConfig(layers=[1], positions="l1", rank=4, dropout=0.3)
    return pyreft.get_reft_model(base, config, disable_model_grads=False)


def with_head(**changes):
    return reft_model(dropout=0.3, modules_to_save=["lm_head"])


def with_dropout(**changes):
    return reft_model(dropout=0.3)


def stream(tokenizer):
    return make_examples(tokenizer).to_iterable_dataset()


def run(make, tokenizer, directory, resume=None, streams=False, **changes):
    """A whole run, or the rest of one, beginning with generators that are somewhere else."""
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(99 if resume else 7)
    if streams:
        changes["train_dataset"] = stream(tokenizer)
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    settings |= {"per_device_train_batch_size": 2, "lr_scheduler_type": "cosine"} | changes
    trainer = make_trainer(make(), tokenizer, directory, **settings)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


# Four batches make an epoch, so step 3 is inside the first epoch, 4 at its end, 5 in the second.
@pytest.mark.parametrize("step", [3, 4, 5])
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        pytest.param(with_dropout, {}, id="plain"),
        pytest.param(with_dropout, {"gradient_accumulation_steps": 3}, id="accumulation"),
        pytest.param(with_dropout, {"streams": True}, id="streaming"),
        pytest.param(with_head, {"weight_decay": 0.1}, id="head"),
        pytest.param(with_lora, {"optim": "adafactor"}, id="lora"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_resumed_run_is_the_run(make, changes, step, whole_runs, tokenizer, tmp_path):
    if changes == {"streams": True} and step > 3 and not hasattr(Trainer, "_init_training_state"):
        pytest.skip("this version of transformers does not ask where a stream was")
    reference, directory = whole_runs(make, changes)
    resumed = run(make, tokenizer, tmp_path, directory / f"checkpoint-{step}", **changes)
    assert losses(resumed) == losses(reference)
    assert_equal(weights(resumed.model), weights(reference.model))


@pytest.fixture(scope="module")
def whole_runs(tokenizer, tmp_path_factory):
    """Uninterrupted runs with a checkpoint at every step, each made once."""
    made = {}

    def whole_run(make, changes):
        key = (make, *changes.items())
        if key not in made:
            directory = tmp_path_factory.mktemp("whole")
            made[key] = run(make, tokenizer, directory, **changes), directory
        return made[key]

    return whole_run


def test_early_stopping_and_the_best_model_go_on_from_where_they_were(tokenizer, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    # The loss falls: a run that forgot how long it has had patience would stop later.
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "max_steps": 30}
    settings |= {"restore_callback_states_from_checkpoint": True}

    def go(directory, resume=None):
        stop = EarlyStoppingCallback(early_stopping_patience=3)
        return run(with_dropout, tokenizer, directory, resume, callbacks=[stop], **settings)

    reference = go(tmp_path / "whole")
    last = reference.state.global_step
    assert last < 30
    resumed = go(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{last - 1}")
    assert resumed.state.global_step == last
    assert resumed.state.best_metric == reference.state.best_metric
    assert resumed.state.best_model_checkpoint == reference.state.best_model_checkpoint
    assert_equal(weights(resumed.model), weights(reference.model))
