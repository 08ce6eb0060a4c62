"""Whole runs of sweep.py and experiments.py on tiny models."""

import sys
from dataclasses import replace

import pytest
import yaml
from loreft_runs import arguments, data, models  # noqa: F401  # fixtures
from test_loreft_runs import pytestmark  # noqa: F401

import experiments
import generated
import sweep
import train


def run_script(module, flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, *flags])
    module.main()


@pytest.mark.parametrize("task", ["commonsense", "glue"])
def test_a_sweep_recommends_what_trains(task, arguments, models, monkeypatch, tmp_path):
    classifies = task == "glue"
    flags = ["-task", task, "-data_dir", arguments.data_dir, "-l", "all", "--lora_layers", "all"]
    flags += ["-model", models["bert" if classifies else "llama"], "-e", "4"]
    flags += ["--train_dataset", "rte" if classifies else "even", "--allow_cls_grad"]
    flags += ["-output_dir", str(tmp_path / "out"), "--gradient_accumulation_steps", "1"]
    searched = ["--layer_sets", "all;1", "--positions", "f1;l1", "--ranks", "1;2"]
    run_script(sweep, [*flags, *searched, "--trials", "2"], monkeypatch)
    (folder,) = (tmp_path / "out").glob("sweep.*")
    assert (folder / "heat_map.png").stat().st_size > 1000
    best = yaml.safe_load((folder / "recommended.yaml").read_text())
    assert set(best) == {"layers", "position", "rank", "lr"}
    assert best["layers"] in ("all", "1")
    # The same command goes on: one more trial, none again.
    run_script(sweep, [*flags, *searched, "--trials", "3"], monkeypatch)
    study = sweep.optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/trials.db")
    assert len(study.trials) == 3
    if not classifies:
        config = ["--config", str(folder / "recommended.yaml"), "--test_split", "test"]
        run_script(train, [*flags, *config, "--eval_dataset", "even", "-gd"], monkeypatch)


def test_an_experiment_searches_the_rate_runs_and_makes_its_table(
    arguments, data, monkeypatch, tmp_path, capsys
):
    content = {
        "small": {
            "preset": "commonsense-smollm2",
            "seeds": [1, 2],
            "search": {"max_n_train_example": 4, "dev_steps": 0},
            "methods": {
                "zero shot": {"intervention_type": "zero_shot"},
                "LoReFT": {"layers": "all", "rank": 1, "rates": ["1e-3", "1e-2"]},
                "LoRA": {"intervention_type": "lora"},
            },
        }
    }
    file = tmp_path / "experiments.yaml"
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(experiments, "EXPERIMENTS", file)
    preset = experiments.parse

    def tiny(*args):
        found, rest = preset(*args)
        small = {"model": arguments.model, "train_dataset": "even", "eval_dataset": "even"}
        return replace(found, **small, batch_size=4, dev_steps=1), rest

    monkeypatch.setattr(experiments, "parse", tiny)
    flags = ["small", "--data_dir", str(data), "--results", str(tmp_path / "results.jsonl")]
    flags += ["--output_dir", str(tmp_path / "out"), "--threads", "1"]
    run_script(experiments, flags, monkeypatch)
    table = capsys.readouterr().out
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    # Two rates are tried with the first seed; zero shot and the better rate run with both.
    assert len(lines) == 2 + 2 + 2 + 2
    assert "| LoReFT " in table
    assert "CPU s to LoRA's best" in table
    assert " of 0.001, 0.01 " in table
    monkeypatch.setattr(train, "run", None)
    run_script(experiments, [*flags, "--picture", str(tmp_path / "scores.png")], monkeypatch)
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_a_sweep_of_what_has_no_score_reads_no_test_set(arguments, monkeypatch):
    read = []
    read_rows = generated.sources.read_rows

    def spy(name, part, *rest):
        read.append((name, part))
        return read_rows(name, part, *rest)

    monkeypatch.setattr(generated.sources, "read_rows", spy)
    found = replace(arguments, task="ultrafeedback", train_dataset=None, eval_dataset=None)
    parts = sweep.read_data(found, sweep.methods.load_tokenizer(found))
    assert {part for _, part in read} == {"train", "validation"}
    assert {len(rows) for rows in parts.values()} == {2, 4}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-task", "maths"], "no task 'maths'"),
        (["-task", "commonsense", "-type", "lora"], "interventions alone"),
        (["-task", "commonsense", "-data_dir", "nowhere"], "no folder nowhere"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(flags, message, arguments, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run_script(sweep, [*flags, "-model", arguments.model], monkeypatch)
