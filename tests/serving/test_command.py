"""`pyreft serve`, without a server; and engines that cannot serve."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import pyreft
from pyreft.cli.serving import server_command, supervise
from pyreft.installed.vllm import FACTS_OF_SERVING
from pyreft.serving import switch


def test_the_command_is_that_of_vllm():
    given = ["cats=a/b", "dogs=./c", "--port", "80", "--dtype=float32"]
    command, environment = server_command("model", given, (4, 2), load=True, folder="copies")
    assert command[command.index("--model") + 1] == "model"
    assert command[command.index("--lora-modules") + 1 :] == ["cats=a/b", "dogs=./c"]
    assert command[command.index("--port") + 1] == "80" and "--dtype=float32" in command
    assert json.loads(command[command.index("--additional-config") + 1]) == {
        "pyreft": {"folder": "copies"}
    }
    assert command[command.index("--max-cpu-loras") + 1] == "4"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    command, environment = server_command(
        "model", ["--port", "80"], (4, 8), load=False, folder="copies"
    )
    assert "--lora-modules" not in command
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment


def test_an_adapter_without_a_name_is_refused():
    with pytest.raises(ValueError, match="NAME=ADAPTER, got 'directory'"):
        server_command("model", ["directory"], (1, 1), load=False, folder="copies")


def config(**changes):
    given = {"additional_config": {"pyreft": {}}, "lora_config": object()}
    given["parallel_config"] = SimpleNamespace(pipeline_parallel_size=1)
    return SimpleNamespace(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"additional_config": {"pyreft": {"a": 1}}}, 'or {"folder": DIRECTORY}, got'),
        ({"additional_config": {"pyreft": {"folder": "nowhere"}}}, "no directory 'nowhere'"),
        ({"lora_config": None}, "--enable-lora"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline"),
    ],
)
def test_an_engine_that_cannot_serve_does_not_start(monkeypatch, changes, reason):
    monkeypatch.setattr(switch, "FACTS_OF_SERVING", ())
    switch.require_possible(config())
    with pytest.raises(ValueError, match=reason):
        switch.require_possible(config(**changes))


# A server that starts twice, and ends with a status or waits.
SERVER = """
import sys, time
from pathlib import Path
folder, end = Path(sys.argv[1]), sys.argv[2]
starts = folder / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if len(starts.read_text()) == 3:
    sys.exit(4)
(folder / "loaded").write_text("")
time.sleep(60 if end == "wait" else 0)
sys.exit(int(end))
"""


@pytest.mark.parametrize("end", ["0", "1"])
def test_a_server_that_had_started_is_started_again(tmp_path, capsys, end):
    command = [sys.executable, "-c", SERVER, str(tmp_path), end]
    assert supervise(command, {}, tmp_path / "loaded") == 4  # the third did not start
    assert (tmp_path / "starts").read_text() == "xxx"
    told = capsys.readouterr().err
    assert "starts again in 1 s" in told and "starts again in 2 s" in told


def test_a_stopped_server_stays_stopped(tmp_path):
    code = "import sys; from pyreft.cli.serving import supervise; from pathlib import Path;"
    code += f"sys.exit(supervise({[sys.executable, '-c', SERVER, str(tmp_path), 'wait']!r}, {{}}, "
    code += f"Path({str(tmp_path / 'loaded')!r})) != -15)"
    running = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "loaded").exists():
        time.sleep(0.05)
    running.terminate()
    assert running.wait(30) == 0
    assert (tmp_path / "starts").read_text() == "x"


def test_a_server_that_waits_to_be_started_again_is_stopped(tmp_path):
    code = "from pyreft.cli import serving; from pathlib import Path; import sys;"
    code += "serving.FIRST_PAUSE = 60;"
    code += f"sys.exit(serving.supervise({[sys.executable, '-c', SERVER, str(tmp_path), '7']!r}, "
    code += f"{{}}, Path({str(tmp_path / 'loaded')!r})))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert "starts again in 60 s" in running.stderr.readline()
        running.terminate()
        assert running.wait(30) == 7
    assert (tmp_path / "starts").read_text() == "x"


def test_an_engine_is_left_alone_unless_it_is_asked():
    assert switch.serves_reft(config())
    assert not switch.serves_reft(config(additional_config={}))


def test_a_release_of_vllm_that_works_in_another_way_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for one in FACTS_OF_SERVING:
        one.forget()
        with pytest.raises(pyreft.UnsupportedReleaseError, match="serving adapters on vLLM relies"):
            one.require("serving adapters on vLLM")
        one.forget()


@pytest.mark.serving
def test_every_fact_holds_for_the_installed_vllm():
    python = os.environ.get("PYREFT_VLLM_PYTHON")
    if not python:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    code = (
        "from pyreft.installed.vllm import FACTS_OF_SERVING as facts;"
        "print([one.explain() for one in facts if not one.holds])"
    )
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
