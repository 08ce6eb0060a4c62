"""A run that is killed at any moment leaves complete checkpoints, and comes to the same end."""

import gc
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import assert_equal, make_trainer, reft_model, weights
from transformers import TrainerState, set_seed
from transformers.trainer_utils import get_last_checkpoint

STEPS, KILLS = 12, 20


def make_run(directory, tokenizer):
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
    settings |= {"per_device_train_batch_size": 2, "save_total_limit": 2, "logging_steps": 100}
    return make_trainer(reft_model(dropout=0.3), tokenizer, directory, **settings)


def go_on(trainer):
    """Train from the newest checkpoint, if there is one, to the end."""
    set_seed(trainer.args.seed)  # as a trainer that is made anew does
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))


def go_on_in_a_child(trainer):
    """Start to train in a process of its own; this one's trainer stays as it is."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # or collecting garbage would copy the whole of this process
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            go_on(trainer)
        finally:
            os._exit(0)
    return child


def assert_all_load(directory, model):
    for checkpoint in Path(directory).glob("checkpoint-*"):
        model.load_weights(checkpoint)
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(checkpoint / name, weights_only=True)
        torch.load(checkpoint / "rng_state.pth", weights_only=False)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_twenty_kills_change_nothing(tokenizer, tmp_path):
    whole = make_run(tmp_path / "whole", tokenizer)
    go_on(whole)
    draw, model = random.Random(0), reft_model(dropout=0.3)
    run, runs, kills, while_saving = make_run(tmp_path / "0", tokenizer), 1, 0, 0
    while kills < KILLS:
        child = go_on_in_a_child(run)
        time.sleep(draw.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        kills += killed
        while_saving += killed and (Path(run.args.output_dir) / "_unfinished").exists()
        assert_all_load(run.args.output_dir, model)
        if not killed:  # the run came to its end: kill another
            run, runs = make_run(tmp_path / str(runs), tokenizer), runs + 1
    assert while_saving, "no kill came while a checkpoint was written"
    go_on(run)
    assert run.state.global_step == STEPS
    assert_equal(weights(run.model), weights(whole.model))
