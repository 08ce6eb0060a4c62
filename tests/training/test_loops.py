"""Plain loops train a ReftModel as ReftTrainer does."""

import functools

import pytest
import runs
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

import pyreft
from conftest import make_base

STEPS, RATE = 4, 1e-2

reft_model = functools.partial(runs.reft_model, layers=[0, 1], positions="f1+l1")


@pytest.fixture(scope="module")
def examples(request):
    tokenizer = request.getfixturevalue("tokenizer")
    rows = [{"prompt": f"say {one}: ", "completion": one * 3} for one in "abcdefgh"]
    return pyreft.make_examples(Dataset.from_list(rows), tokenizer)


def batches(examples, tokenizer, size):
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer)
    return DataLoader(examples, batch_size=size, collate_fn=collator)


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)


@pytest.fixture(scope="module")
def trained(examples, request, tmp_path_factory):
    """What ReftTrainer makes of all the examples in a batch."""
    model = reft_model()
    settings = {"max_steps": STEPS, "per_device_train_batch_size": len(examples)}
    settings |= {"learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    arguments = runs.make_arguments(tmp_path_factory.mktemp("run"), **settings)
    tokenizer = request.getfixturevalue("tokenizer")
    pyreft.ReftTrainer(
        model=model, args=arguments, train_dataset=examples, processing_class=tokenizer
    ).train()
    return model


def assert_same_weights(ours, theirs, tolerance=1e-5):
    ours, theirs = ours.interventions.state_dict(), theirs.interventions.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


def test_a_plain_loop_trains_the_same(trained, examples, tokenizer):
    model = reft_model().train()
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        for batch in batches(examples, tokenizer, len(examples)):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(model, trained)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loop_with_accelerate_trains_and_saves_the_same(
    accumulation, trained, examples, tokenizer, tmp_path
):
    """The completions are equally long, so that the mean of the parts is that of the whole."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model, data = reft_model(), batches(examples, tokenizer, len(examples) // accumulation)
    model, optimizer, data = accelerator.prepare(model, optimizer_of(model), data)
    model.train()
    for _ in range(STEPS):
        for batch in data:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path / "adapter", is_main_process=accelerator.is_main_process
    )
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "adapter")
    assert_same_weights(loaded, trained)
