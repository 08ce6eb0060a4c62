"""Upstream's commands, presets and YAML files become the same arguments."""

import shlex
from dataclasses import asdict

import pytest
import yaml

import arguments
from arguments import Arguments, parse
from methods import layers_of
from tasks import GLUE, TASK_NAMES

PRESETS = yaml.safe_load(arguments.PRESETS.read_text())
# As in the README of upstream's examples.
COMMANDS = {
    "commonsense-llama-7b": "-task commonsense -model yahma/llama-7b-hf -seed 42 -l all -r 8 "
    "-p f7+l7 -e 6 -lr 9e-4 -type LoreftIntervention -gradient_accumulation_steps 2 -batch_size 16 "
    "-eval_batch_size 4 --dropout 0.00 --test_split test --share_weights --warmup_ratio 0.1 "
    "--greedy_decoding",
    "math-llama-7b": "-task math -model yahma/llama-7b-hf -seed 42 -l all -r 8 -p f7+l7 -e 12 "
    "-lr 9e-4 -type LoreftIntervention -gradient_accumulation_steps 2 -batch_size 16 "
    "-eval_batch_size 4 --dropout 0.00 --test_split test -sw -wu 0.1 -gd",
    "ultrafeedback-llama2-7b": "-task ultrafeedback -model meta-llama/Llama-2-7b-hf -seed 42 "
    '-l "3;9;18;24" -r 4 -p f5+l5 -e 9 -lr 9e-4 -type LoreftIntervention '
    "-gradient_accumulation_steps 32 -batch_size 4 --test_split test --max_length 768",
}
# What presets say beside it: upstream has no command for the baselines.
BASELINE = ("lora_rank", "lora_alpha", "lora_modules", "lora_layers")


def read(text):
    return parse(shlex.split(text), "")[0]


@pytest.mark.parametrize("preset", COMMANDS)
def test_a_preset_is_upstreams_command(preset):
    found, expected = asdict(read(f"-preset {preset}")), asdict(read(COMMANDS[preset]))
    assert found == {**expected, **{name: found[name] for name in BASELINE}}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_whole(preset):
    found = read(f"--preset {preset}")
    assert found.task in TASK_NAMES
    assert found.task != "glue" or found.train_dataset in GLUE
    assert layers_of(found.layers)
    assert isinstance(found.lr, float)


def test_the_settings_of_glue_are_the_papers():
    # paper.md, "Settings": rates, epochs, dropout and positions of RoBERTa-base.
    expected = {
        "mnli": ("f1", 0.05, 6e-4, 40),
        "sst2": ("f3", 0.10, 6e-4, 40),
        "mrpc": ("f3", 0.05, 3e-4, 40),
        "cola": ("f3", 0.20, 4e-4, 60),
        "qnli": ("f11", 0.05, 9e-4, 20),
        "qqp": ("f11", 0.05, 6e-4, 40),
        "rte": ("f3", 0.05, 9e-4, 60),
        "stsb": ("f3", 0.05, 6e-4, 60),
    }
    for name, settings in expected.items():
        found = read(f"--preset {name}-roberta-base")
        assert (found.position, found.dropout, found.lr, found.epochs) == settings
        assert (found.train_dataset, found.rank, found.batch_size) == (name, 1, 32)


def test_flags_count_more_than_a_file_and_that_more_than_a_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rank: 4\nlr: 1e-3\nshare_weights: false\n")
    found = read(f"--preset commonsense-llama-7b --config {file} -lr 2e-3")
    assert (found.rank, found.lr, found.share_weights, found.epochs) == (4, 2e-3, False, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ranks: 4", "did you mean rank?"),
        ("zzz: 4", "which does not exist"),
        ("[1, 2]", "must hold arguments by name"),
        ("a: [", "cannot read"),
    ],
)
def test_a_file_that_is_wrong_is_refused(content, message, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        read(f"--config {file}")
    assert message in capsys.readouterr().err


def test_unknown_presets_and_flags_are_refused(capsys):
    with pytest.raises(SystemExit):
        read("--preset mprc-minilm")
    assert "mrpc-minilm" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read("-task math --nonsense 3")
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-e 0", "epochs is 1 or more"),
        ("--dev_steps=-1", "dev_steps is 0 or more"),
        ("-max_n_train_example 0", "max_n_train_example is 1 or more"),
        ("-wu 2", "warmup_ratio"),
        ("-dtype float31", "dtype is one of"),
        ("-disable_reft", "needs use_lora"),
        ("-top_k 40.5", "top_k is a whole number"),
        ("-top_k 0", "top_k is a whole number"),
    ],
)
def test_numbers_out_of_their_range_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        read(flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("written", ["40", "40.0"])
def test_top_k_is_a_whole_number_however_it_is_written(written):
    found = read(f"-task math -top_k {written}").top_k
    assert (found, type(found)) == (40, int)


def test_the_lora_of_the_presets_is_that_of_the_paper():
    found = read("--preset commonsense-llama-7b")
    # Of Llama-7B: D 4096, 11008 between up and down, 32 layers; the paper has .826 %.
    widths = [(4096, 4096)] * 3 + [(4096, 11008), (11008, 4096)]
    assert found.lora_layers == "all"
    assert found.lora_modules == "q_proj;k_proj;v_proj;up_proj;down_proj"
    count = 32 * sum(found.lora_rank * (a + b) for a, b in widths)
    assert 100 * count / 6.738e9 == pytest.approx(0.826, abs=0.01)


def test_the_defaults_are_upstreams():
    expected = {"layers": "2;10;18;26", "rank": 8, "position": "f1+l1", "epochs": 1, "lr": 5e-3}
    expected |= {"batch_size": 4, "gradient_accumulation_steps": 4, "seed": 42, "max_length": 512}
    expected |= {"lora_rank": 8, "lora_alpha": 32, "lora_modules": "o_proj"}
    assert expected.items() <= asdict(Arguments()).items()
