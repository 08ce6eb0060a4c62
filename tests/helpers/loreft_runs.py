"""Fixtures of the tests of examples/loreft: tiny models, small data sets, and a run's arguments."""

import json

import pytest

import sources
from arguments import Arguments
from conftest import make_base
from test_docs import bytes_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a tiny decoder and a tiny encoder, each with its tokenizer."""
    directories = {}
    for architecture in ("llama", "bert"):
        directory = tmp_path_factory.mktemp(architecture)
        model = make_base(architecture, vocab_size=300)
        (model.bert if architecture == "bert" else model).save_pretrained(directory)
        bytes_tokenizer().save_pretrained(directory)
        directories[architecture] = str(directory)
    return directories


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of small data sets in LLM-Adapters' and GLUE's layouts."""
    monkeypatch.setattr(sources, "HELD_OUT", 4)
    folder = tmp_path / "data"
    rows = [
        {"instruction": f"Is {i} even? true/false", "answer": ["true", "false"][i % 2]}
        for i in range(18)
    ]
    sums = [
        {"instruction": f"{i} + 1?", "output": f"It is {i + 1}", "answer": f"{i + 1}.0"}
        for i in range(16)
    ]
    chats = [{"instruction": f"Say {i}", "output": f"{i}!"} for i in range(9)]
    for name, part, content in [
        ("even", "train", rows[6:]),
        ("even", "test", rows[:6]),
        ("sums", "train", sums[5:]),
        ("sums", "test", sums[:5]),
        ("ultrafeedback", "train", chats[3:]),
        ("alpaca_eval", "eval", chats[:3]),
    ]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{part}.json").write_text(json.dumps(content))
    for name, labels in (("RTE", ("entailment", "not_entailment")), ("STS-B", ("1.5", "4.0"))):
        (folder / name).mkdir()
        head = f"sentence1\tsentence2\t{'score' if name == 'STS-B' else 'label'}"
        for part in ("train", "dev"):
            lines = [f"one {i}\ttwo {i}\t{labels[i % 2]}" for i in range(24)]
            (folder / name / f"{part}.tsv").write_text("\n".join([head, *lines]) + "\n")
    return folder


@pytest.fixture
def arguments(models, data, tmp_path):
    return Arguments(
        task="commonsense",
        data_dir=str(data),
        train_dataset="even",
        eval_dataset="even",
        test_split="test",
        model=models["llama"],
        layers="all",
        rank=2,
        position="f2+l2",
        share_weights=True,
        gradient_accumulation_steps=1,
        greedy_decoding=True,
        lora_layers="all",
        save_steps=2,
        output_dir=str(tmp_path / "out"),
    )
