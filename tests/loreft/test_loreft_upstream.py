"""Training by upstream's library, as a method to compare with."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import generated
import pyreft
import upstream
from arguments import Arguments
from conftest import make_base
from pyreft.compat.upstream_files import write_upstream
from pyreft.sharing import read_adapter
from test_docs import bytes_tokenizer
from training import make_examples

ROWS = [
    {"instruction": f"Is {i} even?", "input": "", "output": "", "answer": "true"} for i in range(6)
]


@pytest.fixture
def arguments(tmp_path):
    make_base("llama", vocab_size=300).save_pretrained(tmp_path / "base")
    return Arguments(
        task="commonsense",
        intervention_type="upstream",
        model=str(tmp_path / "base"),
        layers="0;2",
        rank=2,
        position="f2+l2",
        max_steps=2,
        output_dir=str(tmp_path / "out"),
    )


@pytest.fixture
def examples(arguments):
    return make_examples(ROWS, generated.TASKS["commonsense"], bytes_tokenizer(), arguments)


@pytest.mark.parametrize("tied", [True, False])
def test_what_upstream_saved_is_loaded_with_its_positions(
    tied, arguments, examples, monkeypatch, tmp_path
):
    config = pyreft.ReftConfig(layers=[0, 2], positions="f2+l2", rank=2, tied=tied)
    ours = pyreft.get_reft_model(make_base("llama", vocab_size=300), config)
    jobs = []

    def run(job, arguments, files):
        jobs.append(job)
        ours.save_pretrained(tmp_path / "ours")
        write_upstream(read_adapter(tmp_path / "ours"), files["adapter"])
        files["found"].write_text(json.dumps({"steps": 2}))

    monkeypatch.setattr(upstream, "_run", run)
    arguments = replace(arguments, share_weights=tied)
    for _ in range(2):
        base = make_base("llama", vocab_size=300)
        model, found = upstream.train(base, examples, arguments, tmp_path)
    assert len(jobs) == 1, "what is done is not trained again"
    n = len("Is 0 even?\n")
    prefix, suffix = [0, 1], [n - 2, n - 1]
    one = [prefix + suffix] * 2 if tied else [prefix] * 2 + [suffix] * 2
    assert [row["intervention_locations"] for row in jobs[0]["rows"]] == [one] * len(ROWS)
    assert found["n_params"] == ours.count_parameters()
    ids = torch.tensor([examples[0]["input_ids"]])
    labels = torch.tensor([examples[0]["labels"]])
    expected = ours(input_ids=ids, labels=labels).logits
    found = model(input_ids=ids, labels=labels).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "f9+l9"}, "too short for f9"),
        ({"position": "f2+l3"}, "not 2 and 3"),
        ({"rate_ratios": "R=4"}, "at one rate"),
    ],
)
def test_what_upstream_cannot_train_is_refused(changes, message, arguments, examples, tmp_path):
    base = make_base("llama", vocab_size=300)
    with pytest.raises(ValueError, match=message):
        upstream.train(base, examples, replace(arguments, **changes), tmp_path)


@pytest.mark.upstream
def test_upstream_trains_in_its_own_environment(arguments, examples, monkeypatch, tmp_path):
    python = os.environ.get("PYREFT_UPSTREAM_PYTHON")
    if python is None:
        pytest.skip("PYREFT_UPSTREAM_PYTHON is not set")
    monkeypatch.setattr(upstream.harness, "python_of", lambda name, folder: python)
    base = make_base("llama", vocab_size=300)
    model, found = upstream.train(base, examples, arguments, tmp_path)
    assert found["steps"] == 2
    assert Path(tmp_path / "upstream").is_dir()
    assert model.count_parameters() == found["n_params"]
