"""`pyreft` on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import typer
from command_line import run
from hub_server import HubServer, connect

import pyreft
from conftest import make_base, randomize
from pyreft.cli.app import app

IDS = torch.arange(3, 15).view(2, 6)
UPSTREAM = Path(__file__).parent / "references" / "upstream_adapters"

pytestmark = [
    # What huggingface_hub does without Xet, and PEFT.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture
def base(tmp_path):
    """A base model as its users have it: in a directory. GPT-2's linear maps have a bias."""
    make_base("gpt2").save_pretrained(tmp_path / "base")
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()


def save(base, directory, **config):
    config = pyreft.ReftConfig(**{"layers": [0, 2], "positions": "f1+l1", "rank": 2} | config)
    model = randomize(pyreft.get_reft_model(base, config).eval(), 0.1)
    model.save_pretrained(directory)
    return model(IDS).logits.detach()


def logits(model):
    return model.eval()(IDS).logits


# ---- the command itself --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["merge", "--help"]])
def test_help_is_there_at_once(arguments):
    """Which is to say: nothing heavy is imported for it."""
    code = (
        "import sys; from pyreft.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as done: print('code', done.code)\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("code 0\n[]\n")
    assert not ran.stderr


def test_python_m_pyreft_is_pyreft_and_errors_go_to_stderr(tmp_path):
    command = [sys.executable, "-m", "pyreft", "inspect", str(tmp_path / "none")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr == (
        f"pyreft: there is no directory {str(tmp_path / 'none')!r} to load an adapter from.\n"
    )


def test_version_and_commands_are_told(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pyreft {pyreft.__version__}\n"
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("inspect", "convert", "merge", "push"))


def test_every_command_has_an_example_in_its_help():
    commands = typer.main.get_command(app).commands
    assert {"train", "eval", "chat", "push", "pull", "merge", "convert", "demo"} < commands.keys()
    assert [n for n, c in commands.items() if f"Example: pyreft {n}" not in c.help] == []


@pytest.mark.parametrize("typed", [["inspct"], ["inspect"], ["convert", "a", "b"], ["push", "a"]])
def test_what_is_typed_wrong_is_told_apart_from_what_fails(typed, capsys):
    assert run(*typed) == 2
    assert "Usage: pyreft" in capsys.readouterr().err


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect_says_what_an_adapter_is(base, tmp_path, capsys):
    save(base, tmp_path / "adapter", modules_to_save=["transformer.ln_f"])
    assert run("inspect", tmp_path / "adapter") == 0
    out, err = capsys.readouterr()
    assert not err
    table, picture, _ = out.split("\n\n")
    said = {line[15:] for line in table.splitlines()}
    assert {"GPT2LMHeadModel, layers 3, hidden size 32", str(tmp_path / "base")} < said
    assert {"260 of the interventions", "64 of the base model", "transformer.ln_f"} < said
    assert table.endswith("intact         yes")
    assert "  prompt     first     a.a\n" in picture


def test_inspect_tells_programs_the_same(base, tmp_path, capsys):
    save(base, tmp_path / "adapter")
    assert run("inspect", tmp_path / "adapter", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["intact"] is True
    assert said["format"] == "pyreft"
    assert said["parameters"] == {"interventions": 260}
    assert [one["layer"] for one in said["interventions"]] == [0, 2]
    assert said["base_model"]["task"] == "causal_lm"
    assert said["library_versions"]["torch"] == torch.__version__
    size = (tmp_path / "adapter" / "reft_model.safetensors").stat().st_size
    assert said["files"]["reft_model.safetensors"] == size


def test_inspect_reads_upstreams_files(capsys):
    assert run("inspect", UPSTREAM / "prefix_and_suffix", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["format"] == "upstream"
    assert len(said["interventions"]) == 2
    assert run("inspect", UPSTREAM / "prefix_and_suffix") == 0
    assert "'pyreft convert'" in capsys.readouterr().out


def test_a_damaged_adapter_is_not_intact(base, tmp_path, capsys):
    save(base, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "reft_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert run("inspect", tmp_path / "adapter") == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("pyreft: cannot read ")
    assert err.count("\n") == 1
    assert run("inspect", tmp_path / "adapter", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["intact"] is False
    assert "cannot read" in said["error"]


def test_no_name_in_an_adapter_commands_the_terminal(base, tmp_path, capsys):
    save(base, tmp_path / "adapter")
    config = tmp_path / "adapter" / "reft_config.json"
    entry = json.loads(config.read_text())
    entry["base_model"]["name_or_path"] = "\x1b]0;mine\x07\nintact yes"
    config.write_text(json.dumps(entry))
    run("inspect", tmp_path / "adapter")
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(out + err)
    assert "\nintact yes" not in out


# ---- convert and merge ---------------------------------------------------------------------------


def test_an_adapter_goes_to_upstreams_format_and_back(base, tmp_path, capsys):
    expected = save(base, tmp_path / "adapter", tied=False)
    assert run("convert", tmp_path / "adapter", tmp_path / "theirs", "--to", "upstream") == 0
    back = ["--base", tmp_path / "base", "--positions", "f1", "--positions", "l1"]
    back += ["--act-fn", "linear"]
    assert run("convert", tmp_path / "theirs", tmp_path / "ours", "--to", "pyreft", *back) == 0
    assert "is in" in capsys.readouterr().out
    loaded = pyreft.ReftModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), expected)
    assert "from_pretrained" in (tmp_path / "ours" / "README.md").read_text()


def test_an_adapter_becomes_a_lora_of_pefts_or_a_plain_model(base, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    expected = save(base, tmp_path / "adapter", component="mlp_output", positions="all")
    assert run("convert", tmp_path / "adapter", tmp_path / "lora", "--to", "peft") == 0
    assert run("merge", tmp_path / "adapter", tmp_path / "plain") == 0
    load = transformers.AutoModelForCausalLM.from_pretrained
    lora = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "lora")
    torch.testing.assert_close(logits(lora), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(load(tmp_path / "plain")), expected, rtol=1e-4, atol=1e-4)


def test_the_base_model_may_be_another_copy(base, tmp_path):
    save(base, tmp_path / "adapter", component="mlp_output", positions="all")
    (tmp_path / "base").rename(tmp_path / "moved")
    adapter, plain = tmp_path / "adapter", tmp_path / "plain"
    assert run("merge", adapter, plain) == 1
    assert not plain.exists()
    assert run("merge", adapter, plain, "--base", tmp_path / "moved") == 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("merge {0}/adapter {0}/new", "edits PositionSpec('f1+l1')"),
        ("merge {0}/adapter {0}/base", "which is there"),
        ("convert {0}/adapter {0}/new --to peft", "edits PositionSpec('f1+l1')"),
        ("convert {0}/adapter {0}/new --to pyreft", "in the format pyreft already"),
        ("convert {1}/loreft {0}/new --to upstream", "in the format upstream already"),
        ("convert {1}/loreft {0}/new --to pyreft", "give --base"),
        (
            "convert {1}/loreft {0}/new --to pyreft --positions l1 --positions f1",
            "cannot be divided",
        ),
        ("convert {1}/loreft {0}/new --to pyreft --base {0}/base", "does not fit"),
        ("convert {0}/adapter {0}/new --to peft --positions l1", "says its positions"),
        ("push {0}/base alice/adapter", "is no adapter"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(typed, message, base, tmp_path, capsys):
    save(base, tmp_path / "adapter")
    assert run(*(part.format(tmp_path, UPSTREAM) for part in typed.split())) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pyreft: ")
    assert message in last
    assert not (tmp_path / "new").exists()


# ---- the Hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where alice is logged in."""
    with HubServer() as server:
        server.tokens["alices"] = "alice"
        connect(server, monkeypatch, tmp_path / "cache", token="alices")
        yield server


def test_push_and_inspect_reach_the_hub(base, hub, tmp_path, capsys):
    save(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "training_args.bin").write_bytes(b"a run's")
    assert run("push", tmp_path / "adapter", "alice/mine", "--private", "--message", "First") == 0
    assert f"{hub.url}/alice/mine" in capsys.readouterr().out
    files = hub.files("alice/mine")
    assert {"README.md", "reft_config.json", "reft_model.safetensors"} == set(files)
    card = files["README.md"].decode()
    assert "# alice/mine\n" in card
    assert 'ReftModel.from_pretrained(base, "alice/mine")' in card
    assert run("inspect", "alice/mine") == 0
    assert "  prompt     first     a.a\n" in capsys.readouterr().out
    assert run("pull", "alice/mine", tmp_path / "pulled") == 0
    for name, content in files.items():
        assert (tmp_path / "pulled" / name).read_bytes() == content
    assert run("pull", "alice/mine", tmp_path / "pulled") == 1
    assert "name a new directory" in capsys.readouterr().err
    assert run("pull", "alice/nothing", tmp_path / "other") == 1
    assert not (tmp_path / "other").exists()
    assert run("push", tmp_path / "adapter", "bob/mine") == 1
    assert "pyreft: 'bob/mine' cannot be pushed" in capsys.readouterr().err
