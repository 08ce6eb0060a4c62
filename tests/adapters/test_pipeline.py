"""A ReftModel in transformers' text-generation pipeline."""

import copy

import pytest
import torch
from transformers import pipeline

import pyreft
from conftest import make_base


@pytest.fixture
def tokenizer(tokenizer):
    """One of its own, since a pipeline makes its tokenizer pad at the left."""
    return copy.deepcopy(tokenizer)


def test_the_pipeline_generates_what_generate_does(tokenizer):
    torch.manual_seed(0)
    config = pyreft.ReftConfig(positions="f2+l2", rank=4)
    model = pyreft.get_reft_model(make_base("llama"), config)
    settings = {"max_new_tokens": 5, "do_sample": False}
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["hello there", "ok"]
    piped = [pipe(prompt, **settings, return_full_text=False) for prompt in prompts]
    for prompt, answers in zip(prompts, piped, strict=True):
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), **settings)
        expected = tokenizer.decode(ids[0], skip_special_tokens=True).removeprefix(prompt)
        assert answers[0]["generated_text"] == expected


def test_the_pipeline_knows_the_model(tokenizer, caplog):
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(rank=4))
    pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert "not supported" not in caplog.text
