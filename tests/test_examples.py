"""Every example runs, on tiny models of random weights, and so does every benchmark."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import pyreft
from conftest import make_base
from test_docs import bytes_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    # PEFT and TRL use old names of transformers.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # PEFT cannot merge a bias into a linear map without one.
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

RUNS = {
    "quickstart.py": ["--epochs", "2"],
    "classification.py": ["--epochs", "2"],
    "sft.py": ["--epochs", "1"],
    "dpo.py": ["--epochs", "1", "--max-length", "99"],
    "reward_model.py": ["--epochs", "1"],
    "images.py": ["--steps", "2"],
    "sounds.py": ["--steps", "2"],
    "memorisation.py": ["--steps", "2", "--tokens", "8"],
    "pictures.py": ["--epochs", "1"],
    "alpaca.py": ["--epochs", "1"],
    "chat.py": ["--epochs", "1", "--ask", "When?", "--max-new-tokens", "4"],
    "safety.py": ["--epochs", "1"],
    "lora_and_reft.py": ["--epochs", "1"],
    "overhead.py": ["--rounds", "1", "--tokens", "2"],
    "benchmarks/module_cost.py": ["--width", "32"],
    "benchmarks/step_time.py": ["--methods", "pyreft", "--settings", "l1"],
    "benchmarks/memory.py": ["--methods", "bare", "--settings", "paper"],
    "benchmarks/scaling.py": ["--methods", "pyreft", "--axes", "layers"],
    "benchmarks/floor.py": ["--methods"],
    "benchmarks/generation.py": ["--tokens", "2"],
    "benchmarks/mixed_adapters.py": ["--tokens", "2", "--adapters", "3"],
    "benchmarks/loading.py": [],
    "benchmarks/merging.py": ["--tokens", "8"],
    "benchmarks/quickstart_reuse.py": ["--epochs", "2"],
    "benchmarks/parts.py": [],
    "benchmarks/one_graph.py": ["--layers", "1", "--tokens", "8", "--backend", "eager"],
    "benchmarks/quantized.py": ["--bases", "float32", "bfloat16", "--steps", "4"],
    "benchmarks/learning.py": [
        *("--settings", "demonstrations", "--methods", "paper", "recommended"),
        *("--seeds", "0", "--rates", "4e-3", "--steps", "4", "--ranks", "2"),
    ],
    "benchmarks/parity.py": ["--seeds", "0", "--steps", "20"],
    "benchmarks/rates_by_size.py": ["--seeds", "0", "--widths", "16", "32", "--steps", "2"],
    "benchmarks/readme_flow.py": ["--seeds", "0", "--epochs", "2", "--sets", "refusal"],
    "benchmarks/two_releases.py": ["--methods", "pyreft", "--settings", "l1"],
}
# Of one round; they write what they measure as JSON, see harness.py.
MEASURES = {name for name in RUNS if name.startswith("benchmarks/")}
# Started as users start them, in two processes.
LAUNCHED = {"distributed.py": ["--steps", "2"]}
ENCODERS = ("classification.py",)
# They make their own model.
WITHOUT_MODEL = ("images.py", "sounds.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a tiny decoder and a tiny encoder, each with its tokenizer."""
    directories = {}
    for architecture in ("llama", "bert"):
        directory = tmp_path_factory.mktemp(architecture)
        model = make_base(architecture, vocab_size=300, num_hidden_layers=6)
        # An encoder without a head, as encoders come.
        (model.bert if architecture == "bert" else model).save_pretrained(directory)
        tokenizer = bytes_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(directory)
        directories[architecture] = str(directory)
    return directories


def run(name, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, models, monkeypatch, tmp_path, capsys):
    if name in ("sft.py", "dpo.py"):
        pytest.importorskip("trl")
    arguments = list(RUNS[name])
    if name not in WITHOUT_MODEL:
        arguments += ["--model", models["bert" if name in ENCODERS else "llama"]]
    if name in MEASURES:
        arguments += ["--rounds", "1", "--threads", "1"]
    run(name, arguments, monkeypatch, tmp_path)
    assert capsys.readouterr().out
    if name in MEASURES:
        written = tmp_path / "out" / name.replace(".py", ".json")
        assert json.loads(written.read_text())["figures"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_an_example_runs_in_two_processes(name, models, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(EXAMPLES / name), *LAUNCHED[name]]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(pyreft.__file__).parents[1])}
    ended = subprocess.run(
        [*command, "--model", models["llama"]],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("2 processes: loss") == 1
    assert (tmp_path / "out/distributed/adapter/reft_model.safetensors").exists()


def test_every_example_is_run_here():
    scripts = {str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.py")}
    shared = {"base_model.py", "benchmarks/harness.py", "benchmarks/worker.py"}
    shared |= {"benchmarks/learning_tasks.py", "benchmarks/householder.py"}
    # What it makes is looked at in test_gallery.py, and notebooks run in test_notebooks.py.
    shared |= {"gallery.py", "notebooks/execute.py"}
    # Those of examples/loreft run in tests/loreft, of examples/serving in tests/serving.
    apart = ("loreft/", "serving/")
    alone = {n for n in scripts if not n.startswith(apart) and "/out/" not in n}
    assert alone - shared == RUNS.keys() | LAUNCHED.keys()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_the_classifier_reads_a_file_of_the_users(suffix, models, monkeypatch, tmp_path, capsys):
    path = tmp_path / f"reviews.{suffix}"
    rows = [{"review": f"text {i}", "stars": i % 3} for i in range(12)]
    mark = {"csv": ",", "tsv": "\t"}.get(suffix)
    lines = [json.dumps(row) for row in rows]
    if mark:
        lines = [mark.join(rows[0]), *(mark.join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    arguments = ["--data", str(path), "--text", "review", "--label", "stars", "--epochs", "1"]
    run("classification.py", [*arguments, "--model", models["bert"]], monkeypatch, tmp_path)
    assert re.search("rows of 0, 1, 2", capsys.readouterr().out)


@pytest.mark.parametrize("method", [[], ["--peft-lora"]])
def test_preference_tuning_reads_piqa_and_reports_both_methods(
    method, models, monkeypatch, tmp_path, capsys
):
    pytest.importorskip("trl")
    asked = "Choose the solution: Q{}?\n\nSolution1: a\n\nSolution2: b\n\nAnswer format: x"
    rows = [{"instruction": asked.format(i), "answer": f"solution{1 + i % 2}"} for i in range(12)]
    (tmp_path / "piqa.json").write_text(json.dumps(rows))
    arguments = ["--piqa", "piqa.json", "--limit", "10", "--epochs", "1", *method]
    run("dpo.py", [*arguments, "--model", models["llama"]], monkeypatch, tmp_path)
    result = json.loads((tmp_path / "out/dpo/result.json").read_text())
    assert result["method"] == ("LoRA" if method else "LoReFT")
    assert result["pairs"] == {"train": 6, "test": 4}
    assert abs(result["margin"][0]) < 1e-4
    assert 0 <= result["held_out_accuracy"] <= 1


def test_sft_reads_prompts_and_completions(models, monkeypatch, tmp_path, capsys):
    pytest.importorskip("trl")
    rows = [{"prompt": f"say {i}: ", "completion": str(i)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--data", "rows.jsonl", "--epochs", "1", "--model", models["llama"]]
    run("sft.py", arguments, monkeypatch, tmp_path)
    assert "loss" in capsys.readouterr().out
