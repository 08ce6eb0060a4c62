"""`pyreft train`, `eval`, `generate` and `chat`."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run
from transformers import AutoModelForCausalLM, AutoTokenizer

import pyreft
from conftest import make_base
from pyreft.cli.training import read_settings
from pyreft.training.settings import PRESETS, TrainSettings
from test_docs import bytes_tokenizer

ROWS = [{"prompt": f"say {i}: ", "completion": str(i)} for i in range(8)]


@pytest.fixture
def base(tmp_path):
    make_base("llama", vocab_size=300, num_hidden_layers=6).save_pretrained(tmp_path / "base")
    bytes_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return str(file)


@pytest.fixture
def adapter(base, data, tmp_path):
    given = ("--layers", "1,3", "--positions", "f1+l1", "--rank", "2", "--learning-rate", "1e-2")
    assert run("train", base, data, tmp_path / "adapter", *given, "--epochs", "2") == 0
    return str(tmp_path / "adapter")


def test_an_adapter_is_trained_and_answers_as_generate_does(adapter, base, capsys):
    capsys.readouterr()
    model = pyreft.ReftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    shown = [str(entry) for entry in model.reft_config.representations]
    assert len(shown) == 2
    assert all("f1+l1" in entry for entry in shown)

    options = ("--max-new-tokens", "4", "--compare", "--json")
    assert run("generate", adapter, "say 3: ", "who?", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in found] == ["say 3: ", "who?"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    for one in found:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": one["prompt"]}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt.pop("token_type_ids", None)
        for name, answering in (("answer", model), ("base model", _bare(base))):
            ids = answering.generate(**prompt, max_new_tokens=4, do_sample=False)
            new = ids[0, prompt["input_ids"].shape[1] :]
            assert one[name] == tokenizer.decode(new, skip_special_tokens=True)


def _bare(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def test_what_is_not_given_is_recommended(base, data, tmp_path):
    assert run("train", base, data, tmp_path / "adapter", "--epochs", "1") == 0
    model = pyreft.ReftModel.from_pretrained(_bare(base), tmp_path / "adapter")
    expected = pyreft.recommended(_bare(base)).config.resolve(6)
    found = model.reft_config.representations
    assert [(r.layer, str(r.positions)) for r in found] == [
        (r.layer, str(r.positions)) for r in expected
    ]
    state = json.loads(next((tmp_path / "adapter").glob("*/trainer_state.json")).read_text())
    assert state["log_history"][0]["learning_rate"] == pytest.approx(4 * 4e-3), "R's rate"


def test_losses_agree_with_a_float64_computation(adapter, base, data, capsys):
    capsys.readouterr()
    assert run("eval", adapter, data, "--json", "--batch-size", "3") == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = pyreft.ReftModel.from_pretrained(_bare(base), adapter).double().eval()
    for name in ("base model", "adapter"):
        total = count = 0
        for row in ROWS:
            prompt = tokenizer(row["prompt"])["input_ids"]
            answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([prompt + answer])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            with torch.no_grad():
                if name == "adapter":
                    logits = model(input_ids=ids, labels=labels).logits
                else:
                    with model.disable_adapter():
                        logits = model(input_ids=ids).logits
            likely = logits[0].log_softmax(-1)
            for place, token in enumerate(answer, start=len(prompt)):
                total -= float(likely[place - 1, token])
                count += 1
        assert found["tokens"] == count
        assert found[name]["loss"] == pytest.approx(total / count, abs=1e-5)
        assert found[name]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert run("eval", adapter, data) == 0
    shown = capsys.readouterr().out
    assert f"loss {found['adapter']['loss']:.4f}" in shown


def test_a_run_goes_on_from_its_checkpoint_alone_if_asked(base, data, tmp_path, capsys):
    whole, directory = tmp_path / "whole", tmp_path / "adapter"
    given = ("--batch-size", "4", "--schedule", "constant")
    assert run("train", base, data, whole, *given, "--epochs", "2") == 0
    assert run("train", base, data, directory, *given, "--epochs", "1") == 0
    capsys.readouterr()
    assert run("train", base, data, directory, *given, "--epochs", "2") == 1
    assert "--resume" in capsys.readouterr().err
    assert run("train", base, data, directory, *given, "--epochs", "2", "--resume") == 0
    expected, found = (
        pyreft.ReftModel.from_pretrained(_bare(base), d).interventions for d in (whole, directory)
    )
    for key in expected:
        torch.testing.assert_close(found[key].state_dict(), expected[key].state_dict())
    assert run("train", base, data, tmp_path / "other", "--resume") == 1


def test_a_chat_keeps_its_turns_and_prints_them(adapter, monkeypatch, capsys):
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n\nnew\n"))
    assert run("chat", adapter, "--max-new-tokens", "2") == 0
    shown = capsys.readouterr().out
    assert shown.count("> ") == 5
    assert "(a new conversation)" in shown


def test_options_of_a_file_count_less_than_those_of_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning-rate: 9e-4\nlayers: [1, 2]\nepochs: 5\ntied: false\n")
    found = read_settings(file, {"epochs": 2.0, "rank": None, "model": "x"})
    expected = TrainSettings(layers="1,2", learning_rate=9e-4, epochs=2.0, tied=False)
    assert found == expected


def test_a_preset_counts_less_than_a_file_and_that_less_than_options(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rank: 2\nwarmup: 0.2\n")
    found = read_settings(file, {"preset": "math", "warmup": 0.0})
    assert found == replace(PRESETS["math"], rank=2, warmup=0.0)
    assert (found.layers, found.positions, found.epochs, found.learning_rate) == (
        "all",
        "f7+l7",
        12,
        9e-4,
    )


def test_a_preset_trains_with_its_settings(base, data, tmp_path):
    options = ["--preset", "commonsense", "--positions", "f1", "--epochs", "2"]
    assert run("train", base, data, tmp_path / "adapter", *options) == 0
    model = pyreft.ReftModel.from_pretrained(_bare(base), tmp_path / "adapter")
    assert {one.rotate_layer.weight.shape[-1] for one in model.interventions.values()} == {8}
    [checkpoint] = (tmp_path / "adapter").glob("checkpoint-*")
    arguments = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert (arguments.learning_rate, arguments.warmup_steps) == (9e-4, 0.1)
    assert arguments.gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--preset", "comonsense"],
            "there is no preset 'comonsense'; there are commonsense, math",
        ),
        (["--warmup", "1"], "warmup is a part of all steps"),
        (["--warmup", "-0.1"], "warmup is a part of all steps"),
    ],
)
def test_unknown_presets_and_warmups_are_errors(options, message, base, data, tmp_path, capsys):
    capsys.readouterr()
    assert run("train", base, data, tmp_path / "adapter", *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ranks: 4", "did you mean rank?"),
        ("rank: four", "rank is a number, got 'four'"),
        ("tied: maybe", "tied is true or false"),
        ("- 1", "must hold options by name"),
        ("a: [", "cannot read"),
    ],
)
def test_a_wrong_file_is_an_error_in_one_line(content, message, base, data, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(content)
    code = run("train", base, data, tmp_path / "adapter", "--config", tmp_path / "mine.yaml")
    assert code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "99"], "layer"),
        (["--layers", "two"], "layers are all, or indices"),
        (["--positions", "g1"], "g1"),
        (["--kind", "nothing"], "nothing"),
        (["--rank", "0"], "rank"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message, base, data, tmp_path, capsys):
    capsys.readouterr()
    assert run("train", base, data, tmp_path / "adapter", *options) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_data_that_is_not_there_is_an_error(base, tmp_path, capsys):
    assert run("train", base, tmp_path / "none.jsonl", tmp_path / "adapter") == 1
    assert "there is no file" in capsys.readouterr().err


def test_a_model_without_a_chat_template_does_not_chat(adapter, base, capsys):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    for file in Path(base).glob("*.jinja"):
        file.unlink()
    assert run("chat", adapter) == 1
    assert "no chat template" in capsys.readouterr().err
    assert run("generate", adapter, "who?", "--max-new-tokens", "2") == 0
